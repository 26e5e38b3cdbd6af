"""Attack a grader with the rows it would grade, before a job is made: an extension of the contract.

The audit runs in a thread with an event loop of its own, so that a grader that computes holds up no
other request.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import BoundedSemaphore
from typing import Annotated, Any

from fastapi import Depends
from pydantic import Field

from agentrft.audit.probe import Subject
from agentrft.audit.references import find_answers
from agentrft.audit.run import audit
from agentrft.core.errors import ConfigError, DataError
from agentrft.graders.build import build_grader
from agentrft.server.auth import require
from agentrft.server.context import Here, Server
from agentrft.server.dry_runs import LONGEST_S, given
from agentrft.server.errors import ApiError, bad_request, wrong_grader
from agentrft.server.job_wire import Id
from agentrft.server.routing import router
from agentrft.server.wire import Body, Reply
from agentrft.store.access import Identity, Role
from agentrft.store.datasets import read_tasks

_AT_ONCE = 2
_running = BoundedSemaphore(_AT_ONCE)

routes = router("dry runs")
Submitter = Annotated[Identity, Depends(require(Role.SUBMIT))]
Probe = Annotated[int, Field(ge=1, le=1000)]


class AuditBody(Body):
    """A grader and the file with the rows it would grade."""

    grader: dict[str, Any]
    training_file: Id
    rows: Annotated[int, Field(ge=1, le=256)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    probes: Annotated[list[Probe], Field(max_length=100)] | None = None
    """Only these, by number; None for all."""
    task: Id | None = None
    """Only this row, as `replay` of a finding names it."""
    reference: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Key of a row that holds the right answer, where the grader does not show it."""
    model: Id | None = None
    """Grader model for the probes that ask one."""


class AuditReply(Reply):
    """What the audit found; `blocked` says why a job with this grader would be refused."""

    object: str = "grader.audit"
    blocked: Sequence[str]
    headline: Mapping[str, Any]
    findings: Sequence[Mapping[str, Any]]
    rows: int
    answers: int
    seed: int
    seconds: float


@routes.post("/fine_tuning/alpha/graders/audit")
def audit_grader(body: AuditBody, server: Here, caller: Submitter) -> AuditReply:
    """Attack a grader; takes up to two minutes. Tools are not called."""
    if not _running.acquire(blocking=False):
        raise ApiError(
            429,
            f"{_AT_ONCE} audits are running; try again when one is done.",
            code="audit_busy",
            headers={"retry-after": "10"},
        )
    try:
        return _audited(body, server, caller)
    finally:
        _running.release()


def _audited(body: AuditBody, server: Server, caller: Identity) -> AuditReply:
    backends = server.backends_of(caller.project)
    try:
        grader = build_grader(given(body.grader), backends=backends)
    except ConfigError as error:
        raise wrong_grader(error) from None
    if body.model is not None and body.model not in backends.models:
        known = ", ".join(backends.models) or "none"
        raise bad_request(
            f"There is no grader model {body.model!r}; there are: {known}.",
            "model",
            "invalid_value",
        )
    path = server.home.files.path(server.home.files.get(caller.project, body.training_file))
    try:
        tasks = read_tasks(path, numbered=True)
    except DataError as error:
        told = str(error).replace(str(path), body.training_file)
        raise bad_request(told, "training_file", "invalid_training_file") from None
    config = server.settings.audit
    config = replace(
        config,
        rows=body.rows or config.rows,
        timeout_s=min(config.timeout_s, LONGEST_S),
    )
    subject = Subject(
        grader=grader,
        config=body.grader,
        tasks=tasks,
        backends=backends,
        answers=find_answers(body.grader, tasks, path=body.reference or ""),
    )
    model = backends.models[body.model] if body.model else None
    report = asyncio.run(
        audit(
            subject,
            config,
            seed=body.seed,
            model=model,
            only=body.probes or (),
            task=body.task or "",
            command="agentrft audit --grader FILE --data FILE",
        )
    )
    shown = report.as_json()
    return AuditReply(**{name: shown[name] for name in AuditReply.model_fields if name in shown})
