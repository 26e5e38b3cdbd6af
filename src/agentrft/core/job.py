"""A fine-tuning job as the API, the queue and the worker see it, and the states it passes through.

What the job's work leaves behind (events, metrics, rollouts, checkpoints) is a `Run` of the same id.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from agentrft.core.config import HttpTool


class JobStatus(StrEnum):
    """Where a job stands; the words of the fine-tuning API, `paused` included."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in FINAL


FINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})

NEXT: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING_FILES: frozenset(
        {JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.QUEUED: frozenset(
        {JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.QUEUED,  # its worker was lost or asked to leave
            JobStatus.PAUSED,
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
        }
    ),
    JobStatus.PAUSED: frozenset(
        {JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.CANCELLED}
    ),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}
"""Which status may follow which."""


class Wish(StrEnum):
    """What a user asked of a job that a worker holds; the worker obeys within one step."""

    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedMethod:
    """Imitate the training file's conversations. None means `auto`."""

    type: Literal["supervised"] = "supervised"
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    n_epochs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceMethod:
    """Prefer one answer over the other. None means `auto`."""

    type: Literal["dpo"] = "dpo"
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    n_epochs: int | None = None
    beta: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforcementMethod:
    """Roll out, grade, reinforce. None means `auto`."""

    type: Literal["reinforcement"] = "reinforcement"
    grader: Mapping[str, Any]
    """Grader object of the contract, with names filled in; header values replaced by `REDACTED`."""
    gold_grader: Mapping[str, Any] | None = None
    """Held-out grader of the same form: watched at every evaluation, never in the gradient."""
    tools: tuple[HttpTool, ...] = ()
    """Header values replaced by `REDACTED`; the queue keeps the real ones apart, encrypted."""
    response_format: Mapping[str, Any] | None = None
    """`{"name", "schema", "strict"}` of the answer, whichever form it came in."""
    max_episode_steps: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    n_epochs: int | None = None
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"
    compute_multiplier: float | None = None
    eval_interval: int | None = None
    eval_samples: int | None = None


FineTuningMethod = SupervisedMethod | PreferenceMethod | ReinforcementMethod

REDACTED = "[redacted]"
"""Stands where a secret header value was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed, in the contract's three fields."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningJob:
    """One job; the newest record of it is the truth."""

    id: str
    """`ftjob-` and random digits; also the id of the run that holds events and results."""
    project: str
    """Id of the owning project; nobody else sees the job."""
    model: str
    """As the user wrote it."""
    base: str
    """What trains: registry name, hub id or folder; after aliases and fine-tuned names."""
    start: str | None = None
    """Checkpoint folder to begin from, if `model` names a fine-tuned model."""
    method: FineTuningMethod
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int
    metadata: Mapping[str, str] | None = None
    integrations: tuple[Mapping[str, Any], ...] = ()
    created_at: float
    """Unix time."""
    status: JobStatus = JobStatus.VALIDATING_FILES
    validated: bool = False
    """Whether files, tools and grader passed the checks before compute."""
    finished_at: float | None = None
    estimated_finish: float | None = None
    fine_tuned_model: str | None = None
    result_files: tuple[str, ...] = ()
    trained_tokens: int | None = None
    error: JobError | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What `auto` and the given values came to; empty until the job was validated."""
    preflight: Mapping[str, Any] | None = None
    """What the checks before compute measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A worker's hold on a job; every write it makes carries the fence, and a later fence wins."""

    job: FineTuningJob
    worker: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """A job with what the queue knows of its worker."""

    job: FineTuningJob
    worker: str | None = None
    heartbeat_at: float | None = None
    """Unix time of the worker's last sign of life."""
    wish: Wish | None = None
    attempts: int = 0
    """How often a worker took it up since it last got anywhere."""
