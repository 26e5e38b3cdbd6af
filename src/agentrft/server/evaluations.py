"""What a job's validations saw: every rollout, whole (an extension of the contract)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import pydantic_core
from fastapi import Depends, Path, Response

from agentrft.server.auth import require
from agentrft.server.context import Here
from agentrft.server.errors import bad_request
from agentrft.server.job_reply import eval_id
from agentrft.server.routing import router
from agentrft.server.wire import After, Limit, ListReply, Reply, listed
from agentrft.store.access import Identity, Role
from agentrft.store.listing import TrajectorySummary
from agentrft.store.overview import Overview

routes = router("fine-tuning")
Reader = Annotated[Identity, Depends(require(Role.READ))]
Step = Annotated[int, Path(ge=0, le=2**31)]
Name = Annotated[str, Path(pattern=r"^([1-9][0-9]{0,17}|trace_[A-Za-z0-9_-]{1,250})$")]
_JOB = "/fine_tuning/jobs/{job_id}"


class EvaluationReply(Reply):
    """One look at the validation rows."""

    object: Literal["fine_tuning.job.evaluation"] = "fine_tuning.job.evaluation"
    id: str
    eval_id: str
    step: int
    rollouts: int
    dropped: int
    """Spoiled by infrastructure; not part of the mean."""
    score_mean: float | None


class RolloutReply(Reply):
    """One rollout in a line; the whole of it is at `/rollouts/{id}`."""

    object: Literal["fine_tuning.job.rollout"] = "fine_tuning.job.rollout"
    id: str
    step: int
    stage: str
    split: str
    task_id: str
    family: str
    score: float | None
    outcome: str
    stop_reason: str
    tool_calls: int
    sampled_tokens: int
    observed_tokens: int
    duration_s: float
    trajectory_id: str


class WholeRolloutReply(Reply):
    """One rollout with every message, token and grade."""

    object: Literal["fine_tuning.job.rollout"]
    id: str
    stage: str
    split: str
    step: int
    family: str
    messages: Sequence[Mapping[str, Any]]
    trajectory: Mapping[str, Any]
    grade: Mapping[str, Any]
    gold: Mapping[str, Any] | None
    """Of the held-out grader, where it looked."""
    screened: str
    """The monitor that kept it out of the gradient; empty for none."""


@routes.get(_JOB + "/evaluations")
def list_evaluations(job_id: str, server: Here, caller: Reader) -> ListReply[EvaluationReply]:
    """List the validations of a job by step."""
    server.home.queue.get(job_id, caller.project)
    replies = [
        EvaluationReply(id=f"{eval_id(job_id)}-{one.step}", eval_id=eval_id(job_id), **asdict(one))
        for one in Overview(server.home.database).evaluations(job_id)
    ]
    return ListReply[EvaluationReply](
        **listed(replies, [reply.id for reply in replies], has_more=False)
    )


@routes.get(_JOB + "/evaluations/{step}/rollouts")
def list_rollouts(
    job_id: str,
    step: Step,
    server: Here,
    caller: Reader,
    after: After = None,
    limit: Limit = 20,
) -> ListReply[RolloutReply]:
    """List the rollouts of one validation."""
    server.home.queue.get(job_id, caller.project)
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 19):
        raise bad_request(f"'after' is {after[:80]!r}, which is no rollout of this job.", "after")
    found = Overview(server.home.database).validation_rollouts(
        job_id, step, after=int(after or 0), limit=limit
    )
    replies = [_line(summary) for summary in found.items]
    return ListReply[RolloutReply](
        **listed(replies, [reply.id for reply in replies], has_more=found.has_more)
    )


@routes.get(_JOB + "/rollouts/{rollout}", response_model=WholeRolloutReply)
def retrieve_rollout(job_id: str, rollout: Name, server: Here, caller: Reader) -> Response:
    """Return a whole rollout, by its id or by the trajectory id that alarms and tools have."""
    server.home.queue.get(job_id, caller.project)
    name = int(rollout) if rollout.isdigit() else rollout
    record_id, record = Overview(server.home.database).rollout(job_id, name)
    trajectory = record.graded.trajectory
    # Thousands of tokens and logprobs: written as they are, not validated once more.
    body = pydantic_core.to_json(
        {
            "object": "fine_tuning.job.rollout",
            "id": str(record_id),
            "stage": record.stage,
            "split": record.split,
            "step": record.step,
            "family": record.family,
            "messages": trajectory.messages,
            "trajectory": trajectory,
            "grade": record.graded.grade,
            "gold": record.graded.gold,
            "screened": record.graded.screened,
        },
        inf_nan_mode="null",
    )
    return Response(body, media_type="application/json")


def _line(summary: TrajectorySummary) -> RolloutReply:
    line = asdict(summary)
    return RolloutReply(id=str(line.pop("record_id")), **line)
