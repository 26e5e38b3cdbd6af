"""Fine-tuning jobs: made, listed, looked at, cancelled, paused and resumed."""

import re
import time
from typing import Annotated, Literal

from fastapi import Depends, Request

from agentrft.core.job import JobState, Wish
from agentrft.core.run import Event
from agentrft.server.auth import require
from agentrft.server.context import Here, Server
from agentrft.server.errors import bad_request
from agentrft.server.job_reply import JobReply, job_reply
from agentrft.server.job_request import asked
from agentrft.server.job_wire import JobBody
from agentrft.server.routing import new_id, router
from agentrft.server.wire import After, Limit, ListReply, listed
from agentrft.store.access import Identity, Role

routes = router("fine-tuning")
Reader = Annotated[Identity, Depends(require(Role.READ))]
Submitter = Annotated[Identity, Depends(require(Role.SUBMIT))]
_METADATA = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)


@routes.post("/fine_tuning/jobs")
def create_job(request: Request, body: JobBody, server: Here, caller: Submitter) -> JobReply:
    """Queue a job; everything that can be checked without compute is checked now."""
    now = time.time()
    new = asked(server, caller.project, new_id(request, "ftjob-"), body, now)
    warnings = [Event(level="warn", message=text, created_at=now) for text in new.warnings]
    stored = server.home.queue.submit(new.job, new.secrets, warnings)
    return _reply(server, JobState(job=stored))


@routes.get("/fine_tuning/jobs")
def list_jobs(
    request: Request, server: Here, caller: Reader, after: After = None, limit: Limit = 20
) -> ListReply[JobReply]:
    """List jobs, newest first; `metadata[k]=v` picks by metadata, `metadata=null` those without."""
    found = server.home.queue.list(
        caller.project, after=after, limit=limit, metadata=_metadata(request)
    )
    replies = [_reply(server, state) for state in found.items]
    return ListReply[JobReply](
        **listed(replies, [reply.id for reply in replies], has_more=found.has_more)
    )


@routes.get("/fine_tuning/jobs/{job_id}")
def retrieve_job(job_id: str, server: Here, caller: Reader) -> JobReply:
    """Return a job as it stands."""
    return _reply(server, server.home.queue.get(job_id, caller.project))


@routes.post("/fine_tuning/jobs/{job_id}/cancel")
def cancel_job(job_id: str, server: Here, caller: Submitter) -> JobReply:
    """End a job for good; a worker that holds it obeys within one step."""
    return _reply(server, server.home.queue.wish(job_id, caller.project, Wish.CANCEL))


@routes.post("/fine_tuning/jobs/{job_id}/pause")
def pause_job(job_id: str, server: Here, caller: Submitter) -> JobReply:
    """Stop a job after the step it is in, with a snapshot that can be called and resumed."""
    return _reply(server, server.home.queue.wish(job_id, caller.project, Wish.PAUSE))


@routes.post("/fine_tuning/jobs/{job_id}/resume")
def resume_job(job_id: str, server: Here, caller: Submitter) -> JobReply:
    """Put a paused job back in line, where it stood."""
    return _reply(server, server.home.queue.resume(job_id, caller.project))


def _reply(server: Server, state: JobState) -> JobReply:
    settings = server.settings
    return job_reply(
        state,
        organization=settings.organization,
        now=time.time(),
        silence_s=settings.silence_s,
    )


def _metadata(request: Request) -> dict[str, str] | Literal["null"] | None:
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == "metadata" and value == "null":
            return "null"
        match = _METADATA.fullmatch(name)
        if match is not None:
            wanted[match[1]] = value
        elif name not in ("after", "limit"):
            raise bad_request(f"Unknown parameter: '{name[:80]}'.", name[:80], "unknown_parameter")
    return wanted or None
