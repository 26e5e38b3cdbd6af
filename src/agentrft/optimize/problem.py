"""What a search is given, what proposers may look at, and what comes of it. Plain data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrft.core.grade import GradedTrajectory
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Demonstration, Task, ToolSpec
from agentrft.measure.search_summary import SearchSummary
from agentrft.optimize.trials import Trials
from agentrft.optimize.variants import Knob


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSplits:
    """Three sets of tasks that share none."""

    feedback: tuple[Task, ...]
    """Proposers may read it."""
    dev: tuple[Task, ...]
    """Decides screens and races."""
    holdout: tuple[Task, ...]
    """Confirms, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is to be improved."""

    baseline: AgentSpec
    splits: TaskSplits
    tools: tuple[ToolSpec, ...]
    """Canonical."""
    pass_threshold: float
    demonstrations: tuple[Demonstration, ...] = ()
    """Given by the user; of feedback tasks or of none, never of dev or holdout tasks."""
    endpoint: bool = False
    """The agent answers behind an endpoint: no grammar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What proposers may look at: the baseline's rollouts of feedback tasks, and the trials."""

    problem: Problem
    rollouts: tuple[tuple[Task, GradedTrajectory], ...]
    trials: Trials
    seed: int
    told: Callable[[str], None]
    """Writes a line of the run's log."""


class Proposer(Protocol):
    """Thinks of knobs."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        """Return what might help, most promising first; empty if nothing does."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of a search."""

    chosen: AgentSpec
    """The promoted spec, or the baseline."""
    summary: SearchSummary
    demonstrations: tuple[Demonstration, ...] = ()
    """Solved rollouts of feedback tasks, canonical, for training."""
