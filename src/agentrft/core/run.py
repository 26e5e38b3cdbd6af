"""Running work as the store, the reports and the CLI see it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from agentrft.core.grade import GradedTrajectory
from agentrft.core.policy import Checkpoint


class Method(StrEnum):
    """What a run does."""

    EVALUATION = "evaluation"
    SUPERVISED = "supervised"
    REJECTION = "rejection"
    DISTILLATION = "distillation"
    PREFERENCE = "preference"
    REINFORCEMENT = "reinforcement"
    IMPROVE = "improve"
    REGRADE = "regrade"
    PREFLIGHT = "preflight"
    OPTIMIZE = "optimize"
    COMPARISON = "comparison"
    REBASE = "rebase"


TRAINING = frozenset(
    {
        Method.SUPERVISED,
        Method.REJECTION,
        Method.DISTILLATION,
        Method.PREFERENCE,
        Method.REINFORCEMENT,
    }
)
"""Methods that change weights."""


class RunStatus(StrEnum):
    """Where a run stands; the words of the fine-tuning API."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one method on one project."""

    id: str
    project: str
    method: Method
    status: RunStatus
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The resolved config, as it was when the run began."""
    seed: int = 0
    parent_id: str | None = None
    created_at: float = 0.0
    """Unix time."""
    finished_at: float | None = None
    error: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a run's log; append-only."""

    level: Literal["info", "warn", "error"]
    message: str
    created_at: float
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    step: int = 0
    """Optimizer step it belongs to."""
    kind: Literal["message", "metrics"] = "message"
    """`metrics` carry a step's numbers in `data`, as the fine-tuning API shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """Numbers of one optimizer step."""

    step: int
    values: Mapping[str, float]


Split = Literal["train", "validation", "holdout"]
RolloutSplit = Literal[Split, "canary"]
"""Where rollouts come from: `canary` are train rows with a corrupted reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """One stored rollout with the place it was made for."""

    stage: str
    """E.g. `base`, `warm start`, `reinforcement`."""
    split: RolloutSplit
    step: int
    family: str
    graded: GradedTrajectory


Record = Event | StepMetrics | RolloutRecord | Checkpoint
"""Whatever a run appends to the store."""
