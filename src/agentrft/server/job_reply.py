"""A fine-tuning job as the contract shows it, with `preflight` and `worker` beside."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from agentrft.core.config import HttpTool
from agentrft.core.job import (
    FineTuningJob,
    FineTuningMethod,
    JobState,
    ReinforcementMethod,
    SupervisedMethod,
)
from agentrft.server.wire import Reply

_EVERY = ("batch_size", "learning_rate_multiplier", "n_epochs")
_HYPERPARAMETERS: Mapping[str, Sequence[str]] = {
    "supervised": _EVERY,
    "dpo": (*_EVERY, "beta"),
    "reinforcement": (*_EVERY, "compute_multiplier", "eval_interval", "eval_samples"),
}
"""By method, those that `auto` may stand for."""


class ErrorReply(Reply):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class WorkerReply(Reply):
    """Who works on a job, and whether it still does."""

    id: str
    state: Literal["alive", "stalled"]
    heartbeat_at: int | None


class JobReply(Reply):
    """One job."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    id: str
    model: str
    created_at: int
    finished_at: int | None
    fine_tuned_model: str | None
    organization_id: str
    result_files: Sequence[str]
    status: str
    training_file: str
    validation_file: str | None
    trained_tokens: int | None
    error: ErrorReply | None
    user_provided_suffix: str | None
    seed: int
    estimated_finish: int | None
    integrations: Sequence[Mapping[str, Any]]
    hyperparameters: Mapping[str, Any]
    metadata: Mapping[str, str] | None
    usage_metrics: Mapping[str, Any] | None = None
    shared_with_openai: bool = False
    eval_id: str | None
    method: Mapping[str, Any]
    preflight: Mapping[str, Any] | None
    worker: WorkerReply | None


def job_reply(state: JobState, *, organization: str, now: float, silence_s: float) -> JobReply:
    """Return a job as it stands; a worker silent for longer than `silence_s` has stalled."""
    job = state.job
    settings = _hyperparameters(job)
    error = job.error
    return JobReply(
        id=job.id,
        model=job.model,
        created_at=int(job.created_at),
        finished_at=_seconds(job.finished_at),
        fine_tuned_model=job.fine_tuned_model,
        organization_id=organization,
        result_files=job.result_files,
        status=job.status.value,
        training_file=job.training_file,
        validation_file=job.validation_file,
        trained_tokens=job.trained_tokens,
        error=None if error is None else ErrorReply(**asdict(error)),
        user_provided_suffix=job.suffix,
        seed=job.seed,
        estimated_finish=_seconds(job.estimated_finish),
        integrations=job.integrations,
        hyperparameters=settings if isinstance(job.method, SupervisedMethod) else {},
        metadata=job.metadata,
        eval_id=eval_id(job.id) if isinstance(job.method, ReinforcementMethod) else None,
        method={"type": job.method.type, job.method.type: _method(job.method, settings)},
        preflight=job.preflight,
        worker=_worker(state, now, silence_s),
    )


def eval_id(job_id: str) -> str:
    """Return the name under which the validation runs of a job are known."""
    return f"eval_{job_id.removeprefix('ftjob-')}"


def _worker(state: JobState, now: float, silence_s: float) -> WorkerReply | None:
    if state.worker is None:
        return None
    heartbeat = state.heartbeat_at
    stalled = heartbeat is None or now - heartbeat > silence_s
    return WorkerReply(
        id=state.worker,
        state="stalled" if stalled else "alive",
        heartbeat_at=_seconds(heartbeat),
    )


def _hyperparameters(job: FineTuningJob) -> dict[str, Any]:
    """Return what was asked for, `auto` where nothing was, and over it what that came to."""
    given = asdict(job.method)
    names = _HYPERPARAMETERS[job.method.type]
    settings = {name: "auto" if given[name] is None else given[name] for name in names}
    if isinstance(job.method, ReinforcementMethod):
        settings["reasoning_effort"] = job.method.reasoning_effort
    return settings | dict(job.hyperparameters)


def _method(method: FineTuningMethod, settings: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(method, ReinforcementMethod):
        return {"hyperparameters": settings}
    answer = method.response_format
    return {
        "hyperparameters": settings,
        "grader": method.grader,
        "gold_grader": method.gold_grader,
        "tools": [_tool(tool) for tool in method.tools],
        "response_format": None
        if answer is None
        else {"type": "json_schema", "json_schema": answer},
        "max_episode_steps": method.max_episode_steps,
    }


def _tool(tool: HttpTool) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": tool.name, "server_url": tool.server_url}
    shown["headers"] = tool.headers
    if tool.rate_limit is not None:
        shown["rate_limit"] = tool.rate_limit
    return shown


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
