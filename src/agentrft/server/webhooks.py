"""Where to announce that jobs ended: the routes, and the loop that delivers from the outbox."""

import asyncio
import logging
import time
from typing import Annotated, Any, Literal

from fastapi import Depends
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from agentrft.core.errors import StoreError, boundary
from agentrft.egress.errors import AddressRefusedError, EndpointError
from agentrft.egress.webhook import backoff_s, deliver
from agentrft.server.auth import require
from agentrft.server.context import Here, Server
from agentrft.server.errors import bad_request
from agentrft.server.routing import router
from agentrft.server.wire import Body, Deleted, ListReply, Reply, listed
from agentrft.store.access import Identity, Role
from agentrft.store.outbox import Delivery, Webhook

_LOG = logging.getLogger("agentrft.server")
_AT_ONCE = 32
_LONGEST_ERROR = 500

routes = router("webhooks")
Admin = Annotated[Identity, Depends(require(Role.ADMIN))]


class WebhookBody(Body):
    """Where deliveries go."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]


class WebhookReply(Reply):
    """One webhook."""

    object: Literal["webhook"] = "webhook"
    id: str
    url: str
    created_at: int


class NewWebhookReply(WebhookReply):
    """A webhook with the key its deliveries are signed with, shown this once."""

    secret: str


@routes.post("/webhooks")
def create_webhook(body: WebhookBody, server: Here, caller: Admin) -> NewWebhookReply:
    """Announce the end of every job of this project at a URL, signed by Standard Webhooks."""
    try:
        server.policy.target(body.url)
    except AddressRefusedError as refusal:
        raise bad_request(f"The URL {refusal}.", "url") from None
    webhook, secret = server.home.outbox.add_webhook(caller.project, body.url)
    return NewWebhookReply(**_fields(webhook), secret=secret)


@routes.get("/webhooks")
def list_webhooks(server: Here, caller: Admin) -> ListReply[WebhookReply]:
    """List the webhooks of this project."""
    found = [WebhookReply(**_fields(one)) for one in server.home.outbox.webhooks(caller.project)]
    return ListReply[WebhookReply](**listed(found, [one.id for one in found], has_more=False))


@routes.delete("/webhooks/{webhook_id}")
def delete_webhook(webhook_id: str, server: Here, caller: Admin) -> Deleted:
    """Stop announcing at a URL; what was not delivered yet is dropped."""
    server.home.outbox.remove_webhook(caller.project, webhook_id)
    return Deleted(id=webhook_id, object="webhook")


async def deliver_for_ever(server: Server) -> None:
    """Drive the outbox until cancelled: each delivery until it is received or given up."""
    running: set[asyncio.Task[None]] = set()
    while True:
        due: tuple[Delivery, ...] = ()
        try:
            with boundary(StoreError, "outbox"):
                due = await run_in_threadpool(server.home.outbox.due, _AT_ONCE - len(running))
        except StoreError as error:
            _LOG.error("webhooks wait: %s", error)
        for delivery in due:
            task = asyncio.create_task(_deliver(server, delivery))
            running.add(task)
            task.add_done_callback(running.discard)
        # A receiver that takes its time holds up nobody but itself.
        if len(running) == _AT_ONCE:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(server.settings.poll_s)


async def _deliver(server: Server, delivery: Delivery) -> None:
    """Try once and note how it went; what cannot be noted is tried again when its claim runs out."""
    try:
        failure = await _failure(server, delivery)
        outcome = "delivered" if failure is None else "failed"
        server.metrics.webhooks.labels(outcome).inc()
        outbox = server.home.outbox
        if failure is None:
            await run_in_threadpool(outbox.delivered, delivery.sequence)
        else:
            _LOG.warning("webhook %s: %s", delivery.webhook_id, failure)
            pause_s = backoff_s(delivery.attempts)
            await run_in_threadpool(outbox.failed, delivery.sequence, failure, pause_s)
    except StoreError as error:
        _LOG.error("webhook %s: %s", delivery.webhook_id, error)


async def _failure(server: Server, delivery: Delivery) -> str | None:
    """Return why a delivery failed, None if it was received."""
    try:
        with boundary(EndpointError, "webhook"):
            await deliver(
                delivery.url,
                delivery.secret,
                delivery.event_id,
                delivery.body,
                timestamp=time.time(),
                policy=server.policy,
            )
    except EndpointError as error:
        return str(error)[:_LONGEST_ERROR]
    return None


def _fields(webhook: Webhook) -> dict[str, Any]:
    return {"id": webhook.id, "url": webhook.url, "created_at": int(webhook.created_at)}
