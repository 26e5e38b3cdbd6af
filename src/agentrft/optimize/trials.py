"""What a search asks for and gets back. The only way of a search to the world.

Whoever fills `Trials` counts every rollout once, keeps it, and answers the same request from what
is kept; so a search that was interrupted is simply run again and finds its own past.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agentrft.core.errors import AgentRFTError
from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Message, Task

SearchSplit = Literal["feedback", "dev", "holdout"]
"""`feedback` may be read by whoever proposes, `dev` decides races, `holdout` only confirms."""


class BudgetSpentError(AgentRFTError):
    """The search may ask for no more rollouts; what is decided so far stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRequest:
    """One rollout wanted. Two equal requests are one rollout."""

    spec: AgentSpec
    split: SearchSplit
    task: Task
    sample: int
    """Counts repeats of a task; the same sample of two specs shares its seed."""
    purpose: str
    """The stage that asked, e.g. `baseline`, `screen`, `race 2`, `confirm`; no part of the identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Plain text wanted of the agent's own model, e.g. names for a tool."""

    messages: tuple[Message, ...]
    samples: int
    temperature: float = 1.0
    max_tokens: int = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the ledger holds."""

    rollouts: int = 0
    """Finished, infrastructure faults included."""
    interrupted: int = 0
    """Begun and never finished."""
    reused: int = 0
    """Answered from what was kept; cost nothing."""
    questions: int = 0
    """Completions of plain text."""
    sampled_tokens: int = 0
    observed_tokens: int = 0
    tool_calls: int = 0
    seconds: float = 0.0
    """Wall clock of the search, that of interrupted runs of it included."""
    by_purpose: dict[str, int] = field(default_factory=dict[str, int])


class Trials(Protocol):
    """Rolls specs out and remembers."""

    async def roll_out(self, requests: Sequence[TrialRequest]) -> list[GradedTrajectory]:
        """Run what is not known yet, arms interleaved as they are listed; results in order.

        A rollout lost to infrastructure is tried once more and then returned as it is. Raises
        BudgetSpentError before anything runs if the rest of the budget does not hold all of it.
        """
        ...

    def missing(self, requests: Sequence[TrialRequest]) -> int:
        """Return how many of them are not kept yet and would have to be run."""
        ...

    async def ask(self, question: Question) -> list[str]:
        """Return that many completions; seeded, and kept like rollouts."""
        ...

    def decided(self, number: int, *, holds: bool) -> bool:
        """Return what an earlier run of the search decided at this place; else keep `holds`.

        What hangs on the clock would otherwise come out differently when a search is resumed.
        """
        ...

    @property
    def spent(self) -> Spent:
        """Return the ledger's totals."""
        ...


def passed(graded: GradedTrajectory, threshold: float) -> bool | None:
    """Return whether a rollout solved its task; None if infrastructure spoiled it."""
    if graded.outcome is Outcome.INFRASTRUCTURE_FAULT or graded.grade.score is None:
        return None
    return graded.grade.score >= threshold
