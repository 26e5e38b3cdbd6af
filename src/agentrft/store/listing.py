"""What a store can list beyond `core.protocols.Store`: pages of runs and trajectory summaries."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from agentrft.core.grade import Outcome
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Page, Store
from agentrft.core.run import Event, Record, RolloutRecord, RolloutSplit, Run, StepMetrics
from agentrft.core.trajectory import StopReason

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectorySummary:
    """One line of a trajectory list; `record_id` opens the whole record."""

    record_id: int
    step: int
    stage: str
    split: RolloutSplit
    task_id: str
    family: str
    score: float | None
    outcome: Outcome
    stop_reason: StopReason
    tool_calls: int
    sampled_tokens: int
    observed_tokens: int
    duration_s: float
    trajectory_id: str
    """As tools, graders and alarms know it; empty for what was stored by early versions."""


class RunStore(Store, Protocol):
    """A store that can also list, open and rewind runs."""

    def runs(self, project: str | None = None, *, after: int = 0, limit: int = 100) -> Page[Run]:
        """List runs, newest first."""
        ...

    def run(self, run_id: str) -> Run:
        """Return one run. Raises StoreError if there is none of this id."""
        ...

    def find_run(self, run_id: str) -> Run | None:
        """Return one run, or None if there is none of this id."""
        ...

    def events(
        self, run_id: str, *, after: int | None = None, limit: int = 100
    ) -> Page[tuple[int, Event]]:
        """List a run's events with their places, newest first; `after` is the last place seen."""
        ...

    def events_since(self, run_id: str, sequence: int, limit: int = 100) -> Page[tuple[int, Event]]:
        """List what was appended after a place, in append order; for followers."""
        ...

    def trajectories(
        self,
        run_id: str,
        *,
        stage: str | None = None,
        split: RolloutSplit | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Page[TrajectorySummary]:
        """List a run's trajectories in append order without reading their tokens."""
        ...

    def trajectory(self, record_id: int) -> RolloutRecord:
        """Return one whole record. Raises StoreError if there is none of this id."""
        ...

    def latest_checkpoint(self, run_id: str) -> Checkpoint | None:
        """Return the checkpoint of the highest step."""
        ...

    def rewind(self, run_id: str, step: int) -> Mapping[str, int]:
        """Remove every record of a later step, for resuming; return how many of each kind."""
        ...


def summary_of(record_id: int, record: RolloutRecord) -> TrajectorySummary:
    """Return the line that stands for a record."""
    trajectory, grade = record.graded.trajectory, record.graded.grade
    return TrajectorySummary(
        record_id=record_id,
        step=record.step,
        stage=record.stage,
        split=record.split,
        task_id=trajectory.task_id,
        family=record.family,
        score=grade.score,
        outcome=record.graded.outcome,
        stop_reason=trajectory.stop_reason,
        tool_calls=len(trajectory.tool_calls),
        sampled_tokens=trajectory.sampled_tokens,
        observed_tokens=trajectory.observed_tokens,
        duration_s=trajectory.duration_s,
        trajectory_id=trajectory.id,
    )


def kind_of(record: Record) -> str:
    """Return the name under which records like this are kept and counted."""
    match record:
        case Event():
            return "events"
        case StepMetrics():
            return "metrics"
        case Checkpoint():
            return "checkpoints"
        case RolloutRecord():
            return "trajectories"
