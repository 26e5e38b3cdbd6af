"""The API as one ASGI application. Torch-free; running work is reached through the store alone."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import anyio.to_thread
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from agentrft.core.errors import StoreError, boundary
from agentrft.server import (
    chat as chat_routes,
)
from agentrft.server import (
    checkpoints,
    dry_runs,
    errors,
    evaluations,
    events,
    files,
    grader_audits,
    health,
    jobs,
    models,
    openapi_page,
    responses,
    webhooks,
)
from agentrft.server.context import Chat, Server
from agentrft.server.followers import Followers
from agentrft.server.gate import Gate
from agentrft.server.limits import Limiter
from agentrft.server.metrics import Metrics
from agentrft.server.settings import ServerSettings
from agentrft.store.home import Home

__all__ = ["ServerSettings", "create_app"]

_LOG = logging.getLogger("agentrft.server")
_ROUTERS = (
    events.routes,
    files.routes,
    jobs.routes,
    checkpoints.routes,
    evaluations.routes,
    models.routes,
    chat_routes.routes,
    responses.routes,
    dry_runs.routes,
    grader_audits.routes,
    webhooks.routes,
    health.routes,
    openapi_page.routes,
)
_FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": errors.FailureReply, "description": "The request was refused."},
    "5XX": {"model": errors.FailureReply, "description": "The server failed."},
}


def create_app(home: Home, settings: ServerSettings, chat: Chat) -> FastAPI:
    """Return the application; it closes neither `home` nor `chat`."""
    policy = settings.backends.policy
    policy = replace(policy, own_ports=policy.own_ports | {settings.port})
    server = Server(
        home=home,
        settings=settings,
        backends=replace(settings.backends, policy=policy),
        chat=chat,
        limiter=Limiter(settings.requests_per_minute),
        metrics=Metrics(),
        followers=Followers(home, settings.poll_s, events.frame),
    )

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.threads
        chores = [asyncio.create_task(_tidy_for_ever(server))]
        if settings.deliver_webhooks:
            chores.append(asyncio.create_task(webhooks.deliver_for_ever(server)))
        yield
        for chore in chores:
            chore.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*chores)

    app = FastAPI(
        title="AgentRFT",
        description="The OpenAI fine-tuning contract, on your machine.",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=running,
        redirect_slashes=False,
        responses=_FAILURES,
        # For the document alone: the gate has looked at the token before any route is reached.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
    )
    app.state.server = server
    errors.install(app)
    app.add_middleware(Gate, server=server)
    for router in _ROUTERS:
        app.include_router(router)
    return app


async def _tidy_for_ever(server: Server) -> None:
    """Until cancelled, requeue what silent workers hold: the API may be all that is left to see it."""
    while True:
        try:
            with boundary(StoreError, "queue"):
                await run_in_threadpool(server.home.queue.reap)
        except StoreError as error:
            _LOG.error("silent workers were not looked for: %s", error)
        await asyncio.sleep(server.settings.silence_s)
