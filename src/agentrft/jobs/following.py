"""What a training tells whoever follows it: the command line writes a line, the API an event."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event, RolloutRecord, StepMetrics
from agentrft.jobs.context import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step came to; its rollouts are stored already."""

    step: int
    metrics: Mapping[str, float]
    """Of the step, and `seconds/validation` if it was followed by one."""
    train: Sequence[RolloutRecord] = ()
    validation: Sequence[RolloutRecord] | None = None
    """None if nothing was rolled out for validation after this step."""
    canaries: Sequence[RolloutRecord] = ()
    """Rollouts of train rows with a corrupted reference, made after this step."""


class Follower(Protocol):
    """Called in step order, on the event loop."""

    def stepped(self, result: StepResult) -> None:
        """Take note of a step; once per committed step, unless the run is killed between."""
        ...

    def has_told(self, step: int) -> bool:
        """Whether `stepped` left its mark for a step before this process began; step 0 has none."""
        ...

    def kept(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Take note of every checkpoint that stays on disk; all others are about to go."""
        ...


class ValidationLines:
    """Follows for the command line: one event per look at what is held out."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def stepped(self, result: StepResult) -> None:
        """Write the validation score, or what was measured on held-out rows."""
        if line := held_out_line(result.metrics):
            self._job.event(f"step {result.step}: {line}", step=result.step)
        if result.validation is None:
            return
        score = mean_score(result.validation)
        scored = sum(record.graded.grade.score is not None for record in result.validation)
        self._job.event(
            f"step {result.step}: validation score "
            f"{'unknown' if score is None else f'{score:.3f}'} on {scored} rollouts",
            step=result.step,
            score=score,
        )

    def has_told(self, step: int) -> bool:
        """Say yes: a missing line is no loss."""
        return True

    def kept(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Do nothing."""


TOLD = ("loss", "token_accuracy", "accuracy", "margin", "reward")
"""Metrics that are worth a line, where a method has them."""


def held_out_line(metrics: Mapping[str, float]) -> str:
    """Return what a step's metrics say of rows held out; empty if they were not looked at."""
    names = {f"validation_{name}": name.replace("_", " ") for name in TOLD}
    told = [f"{names[name]} {metrics[name]:.3f}" for name in names if name in metrics]
    return f"held out: {', '.join(told)}" if told else ""


def run_lines(job: Job) -> list[str]:
    """Return a run's log, and what its steps measured first and last."""
    lines = [event.message for event in job.read_all(Event)]
    if steps := job.read_all(StepMetrics):
        first, last = steps[0], steps[-1]
        told = [
            f"{name.replace('_', ' ')} {first.values[name]:.3f} -> {last.values[name]:.3f}"
            for name in TOLD
            if name in first.values and name in last.values
        ]
        lines.append(f"steps {first.step} to {last.step}: {', '.join(told)}")
    return lines


def mean_score(records: Sequence[RolloutRecord]) -> float | None:
    """Return the mean over graded rollouts; None if none is graded."""
    scores = [r.graded.grade.score for r in records if r.graded.grade.score is not None]
    return sum(scores) / len(scores) if scores else None


def mean_gold(records: Sequence[RolloutRecord]) -> float | None:
    """Return the mean of the held-out grader over what it graded; None if that is nothing."""
    golds = [
        r.graded.gold.score for r in records if r.graded.gold and r.graded.gold.score is not None
    ]
    return sum(golds) / len(golds) if golds else None
