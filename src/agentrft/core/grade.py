"""Grades, and the group of graded trajectories of one task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agentrft.core.task import Task
from agentrft.core.trajectory import Failure, FailureKind, Trajectory
from agentrft.core.usage import TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What a grader said. `score` `None` means not graded; `0.0` means graded zero."""

    score: float | None
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Named components, reported beside the score; no sum of them is implied."""
    explanation: str = ""
    failure: Failure | None = None
    grader: str = ""
    duration_s: float | None = field(default=None, compare=False)
    """Wall clock of grading; None if nobody looked at the clock."""
    usage: Mapping[str, TokenUsage] = field(default_factory=dict[str, TokenUsage])
    """By grader model, as the grader object names it; empty if no model was asked."""
    turn_scores: tuple[float, ...] = ()
    """One per turn of the trajectory, credited as `Credit.turn_weight` says. Empty if none given."""

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"grader {self.grader!r} gave {self.score}; a score must be finite")
        if self.score is None and self.failure is None:
            raise ValueError(f"grader {self.grader!r} gave no score and no failure; one is needed")


class Outcome(StrEnum):
    """The three ways a rollout can count."""

    SCORED = "scored"
    MODEL_FAULT = "model_fault"
    """Scored like any other; the failure is the model's own."""
    INFRASTRUCTURE_FAULT = "infrastructure_fault"
    """Dropped and counted; never a reward, never part of a baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedTrajectory:
    """A trajectory with its grade."""

    trajectory: Trajectory
    grade: Grade
    gold: Grade | None = None
    """What the held-out grader says; never a reward. None if it was not asked."""
    second: Grade | None = None
    """The same grader's word with another model behind it; None if it was not asked."""
    screened: str = ""
    """Why a monitor keeps this rollout out of the gradient; empty if none does."""

    @property
    def outcome(self) -> Outcome:
        """Who, if anybody, is at fault."""
        if self.grade.score is None:
            return Outcome.INFRASTRUCTURE_FAULT
        failure = self.trajectory.failure
        if failure is None:
            return Outcome.SCORED
        if failure.kind is FailureKind.MODEL:
            return Outcome.MODEL_FAULT
        return Outcome.INFRASTRUCTURE_FAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All trajectories of one task under one policy version; failures included."""

    task: Task
    policy_version: int
    graded: tuple[GradedTrajectory, ...]
    dropped: tuple[GradedTrajectory, ...] = ()
    """Infrastructure faults replaced by a refill; kept for the record."""

    @property
    def survivors(self) -> tuple[GradedTrajectory, ...]:
        """Those that may move a gradient or a baseline."""
        return tuple(
            g
            for g in self.graded
            if g.outcome is not Outcome.INFRASTRUCTURE_FAULT and not g.screened
        )

    @property
    def scores(self) -> tuple[float, ...]:
        """Scores of the survivors."""
        return tuple(g.grade.score for g in self.survivors if g.grade.score is not None)

    @property
    def has_spread(self) -> bool:
        """Whether scores differ, so that the group carries a learning signal."""
        scores = self.scores
        return len(scores) > 1 and max(scores) - min(scores) > 1e-9


def survivors_needed(group_size: int) -> int:
    """Return how many trajectories must survive for a group to count: max(2, ceil(0.75 G))."""
    return max(2, math.ceil(0.75 * group_size))
