"""Whether the server works, in three forms: for probes, for Prometheus, for people."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.concurrency import run_in_threadpool

from agentrft.core.errors import StoreError
from agentrft.server.auth import require
from agentrft.server.context import Here, Server
from agentrft.server.wire import Reply
from agentrft.store.access import Identity, Role
from agentrft.store.overview import Overview

routes = APIRouter(tags=["operation"])


class HealthReply(Reply):
    """What works."""

    status: Literal["ok", "degraded"]
    database: bool
    chat: bool
    worker_heartbeat_age_s: float | None
    """Since the last sign of life of any worker that holds a job; null if none does."""


@routes.get("/healthz", responses={503: {"model": HealthReply}})
async def healthz(server: Here, response: Response) -> HealthReply:
    """Answer 200 while requests can be served, 503 without the database."""
    database, age = await run_in_threadpool(_database, server)
    chat = await server.chat.ready()
    response.status_code = 200 if database else 503
    return HealthReply(
        status="ok" if database and chat else "degraded",
        database=database,
        chat=chat,
        worker_heartbeat_age_s=age,
    )


@routes.get("/metrics", response_class=Response)
def prometheus(
    server: Here, _caller: Annotated[Identity, Depends(require(Role.ADMIN))]
) -> Response:
    """Return counters and gauges in Prometheus' text form."""
    overview = Overview(server.home.database)
    oldest = overview.oldest_waiting()
    server.metrics.queue_age_s.set(0.0 if oldest is None else max(0.0, time.time() - oldest))
    for status, count in server.home.queue.counts().items():
        server.metrics.jobs.labels(status).set(count)
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _database(server: Server) -> tuple[bool, float | None]:
    try:
        heartbeat = Overview(server.home.database).last_heartbeat()
    except StoreError:
        return False, None
    return True, None if heartbeat is None else max(0.0, time.time() - heartbeat)
