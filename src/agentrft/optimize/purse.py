"""A search's budget and everything it has rolled out. Keeps the confirmation's share back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from agentrft.core.grade import GradedTrajectory
from agentrft.core.task import Task
from agentrft.optimize.trials import (
    BudgetSpentError,
    Question,
    SearchSplit,
    Spent,
    TrialRequest,
    Trials,
    passed,
)
from agentrft.optimize.variants import Variant

BLOCK = 160
"""Rollouts that are asked for together; a budget ends a stage between two blocks."""
FIRST = 32
"""The same before anybody knows how long a rollout takes."""

Pair = tuple[Task, int]
"""A task and which repeat of it: what arms of a comparison share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One rollout that the search has been given."""

    split: SearchSplit
    task: Task
    sample: int
    graded: GradedTrajectory


class Purse(Trials):
    """Trials within a budget, of which a share is kept; the holdout is for `confirm` alone."""

    def __init__(
        self, trials: Trials, *, rollouts: int, minutes: float, kept: int, holdout: Sequence[Task]
    ) -> None:
        self._trials = trials
        self._rollouts = rollouts
        self._seconds = minutes * 60
        self._kept = kept
        self._holdout = frozenset(task.id for task in holdout)
        self._share, self._start = 1.0, 0
        self._asked = 0
        self._seen: dict[tuple[str, str, str, int], Seen] = {}

    async def roll_out(self, requests: Sequence[TrialRequest]) -> list[GradedTrajectory]:
        """Roll out all of them. Raises BudgetSpentError if they do not fit into what is left.

        Raises ValueError for a holdout task.
        """
        for request in requests:
            if request.split == "holdout" or request.task.id in self._holdout:
                raise ValueError(
                    f"holdout task {request.task.id!r} was asked for by {request.purpose!r}; "
                    "only the confirmation may read it"
                )
        missing = self._trials.missing(requests)
        self._asked += 1
        if not self._trials.decided(self._asked, holds=not missing or self._holds(missing)):
            raise BudgetSpentError(
                f"{missing} more rollouts do not fit: {self._trials.spent.rollouts} of "
                f"{self._rollouts} are spent and {self._kept} are kept for the end"
            )
        graded = await self._trials.roll_out(requests)
        for request, one in zip(requests, graded, strict=True):
            key = (one.trajectory.spec_hash, request.split, request.task.id, request.sample)
            self._seen[key] = Seen(
                split=request.split, task=request.task, sample=request.sample, graded=one
            )
        return graded

    async def confirm(self, requests: Sequence[TrialRequest]) -> list[GradedTrajectory]:
        """Roll out holdout tasks from the share that was kept for it, whatever the clock says.

        Raises BudgetSpentError if the trials themselves hold no more.
        """
        return await self._trials.roll_out(requests)

    async def afford(
        self, requests: Sequence[TrialRequest], *, unit: int = 1
    ) -> list[GradedTrajectory]:
        """Roll out as many as the budget holds, `unit` of them or none; results of the first ones."""
        graded: list[GradedTrajectory] = []
        size = max(BLOCK // unit, 1) * unit
        while size and len(graded) < len(requests):
            block = size if self._asked else max(FIRST // unit, 1) * unit
            try:
                graded += await self.roll_out(requests[len(graded) : len(graded) + block])
            except BudgetSpentError:
                size = size // 2 // unit * unit
        return graded

    def missing(self, requests: Sequence[TrialRequest]) -> int:
        return self._trials.missing(requests)

    async def ask(self, question: Question) -> list[str]:
        return await self._trials.ask(question)

    def decided(self, number: int, *, holds: bool) -> bool:
        return self._trials.decided(number, holds=holds)

    @property
    def spent(self) -> Spent:
        return self._trials.spent

    @property
    def rollouts(self) -> Sequence[Seen]:
        """Everything rolled out so far, proposers' rollouts included, in order."""
        return list(self._seen.values())

    def keep(self, rollouts: int) -> None:
        """Keep so many back from now on."""
        self._kept = rollouts

    @contextmanager
    def allowing(self, share: float) -> Iterator[None]:
        """Let no more than this share of what is left now be spent in here."""
        self._share, self._start = share, self.spent.rollouts
        try:
            yield
        finally:
            self._share, self._start = 1.0, 0

    def _holds(self, missing: int) -> bool:
        """Whether so many new rollouts leave what is kept back, in number and in time."""
        spent = self._trials.spent
        most = float(self._rollouts)
        if spent.rollouts and spent.seconds:
            most = min(most, self._seconds * spent.rollouts / spent.seconds)
        # Where little fits, a confirmation of something is worth more than room for it alone.
        free = most - min(self._kept, most / 2) - self._start
        return spent.rollouts + missing <= self._start + self._share * free


def requests(
    variant: Variant, split: SearchSplit, pairs: Sequence[Pair], purpose: str
) -> list[TrialRequest]:
    """Return what asks for one spec on these pairs."""
    return [
        TrialRequest(spec=variant.spec, split=split, task=task, sample=sample, purpose=purpose)
        for task, sample in pairs
    ]


def interleaved(
    variants: Sequence[Variant], split: SearchSplit, pairs: Sequence[Pair], purpose: str
) -> list[TrialRequest]:
    """Return the requests of all specs pair by pair, so that drift in time meets all alike."""
    by_variant = [requests(variant, split, pairs, purpose) for variant in variants]
    return [request for of_pair in zip(*by_variant, strict=True) for request in of_pair]


def passes(
    tasks: Sequence[Task], graded: Sequence[GradedTrajectory], threshold: float
) -> dict[str, list[bool]]:
    """Return task id to whether each of its rollouts passed, infrastructure faults left out."""
    by_task: dict[str, list[bool]] = {}
    for task, one in zip(tasks, graded, strict=True):
        if (solved := passed(one, threshold)) is not None:
            by_task.setdefault(task.id, []).append(solved)
    return by_task


def schedule(tasks: Sequence[Task], start: int, count: int) -> list[Pair]:
    """Return pairs `start` to `start + count` of an endless round through the tasks."""
    places = range(start, start + count)
    return [(tasks[place % len(tasks)], place // len(tasks)) for place in places]
