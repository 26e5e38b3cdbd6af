"""Events of a job: newest first in pages, or as they come on a stream."""

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from agentrft.core.run import Event
from agentrft.server.auth import require
from agentrft.server.context import Here, Server
from agentrft.server.errors import bad_request
from agentrft.server.routing import router
from agentrft.server.wire import After, Limit, ListReply, Reply, listed
from agentrft.store.access import Identity, Role

routes = router("fine-tuning")
_PREFIX = "ftevent-"
_END = b"data: [DONE]\n\n"


class EventReply(Reply):
    """One event."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


@routes.get(
    "/fine_tuning/jobs/{job_id}/events",
    responses={200: {"content": {"text/event-stream": {}}}},
    response_model=ListReply[EventReply],
)
async def list_events(
    *,
    job_id: str,
    request: Request,
    server: Here,
    caller: Annotated[Identity, Depends(require(Role.READ))],
    after: After = None,
    limit: Limit = 20,
    stream: Annotated[
        bool, Query(description="Send events as they come, oldest first (an extension).")
    ] = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse | ListReply[EventReply]:
    """List events newest first, or follow them with `stream=true`."""
    await run_in_threadpool(server.home.queue.get, job_id, caller.project)
    if stream:
        seen = last_event_id or after
        begin = _sequence(seen, "after") if seen else 0
        return StreamingResponse(_follow(server, job_id, begin), media_type="text/event-stream")
    last = None if after is None else _sequence(after, "after")
    page = await run_in_threadpool(server.home.store.events, job_id, after=last, limit=limit)
    entries = [entry(sequence, event) for sequence, event in page.items]
    ids = [reply.id for reply in entries]
    return ListReply[EventReply](**listed(entries, ids, has_more=page.has_more))


def entry(sequence: int, event: Event) -> EventReply:
    """Return an event as the contract shows it."""
    return EventReply(
        id=f"{_PREFIX}{sequence}",
        created_at=int(event.created_at),
        level=event.level,
        message=event.message,
        type=event.kind,
        data=dict(event.data) or None,
    )


def frame(sequence: int, event: Event) -> bytes:
    """Return an event as server-sent event."""
    reply = entry(sequence, event)
    # ASCII, for some clients take U+2028 and its like for the end of a line.
    text = json.dumps(reply.model_dump(mode="json"))
    return f"id: {reply.id}\ndata: {text}\n\n".encode()


async def _follow(server: Server, job_id: str, after: int) -> AsyncIterator[bytes]:
    with server.metrics.followers.track_inprogress():
        settings = server.settings
        async for frames in server.followers.follow(job_id, after, settings.heartbeat_s):
            yield frames
        yield _END


def _sequence(event_id: str, param: str) -> int:
    match = re.fullmatch(rf"{_PREFIX}(\d{{1,18}})", event_id)
    if match is None:
        raise bad_request(f"{param!r} is {event_id!r}, which is no event of this job.", param)
    return int(match[1])
