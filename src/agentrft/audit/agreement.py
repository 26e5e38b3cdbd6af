"""Asks a model grader again, with its labels turned round, about clear cases, and asks a second one."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.protocols import Grader
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.model_grader import LabelScale, ModelGrader
from agentrft.measure.agreement import Agreement, Anchors, Repeats, anchors, compare, repeats

Rollout = tuple[Task, Trajectory]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How far a grader agrees with itself, with what is known, and with another one."""

    repeats: Repeats | None
    """None if nothing could be graded twice."""
    order: Agreement | None
    """The labels in their order and reversed; None for graders without labels."""
    anchors: Anchors | None
    """None without good and bad outputs of the same task."""
    second: Agreement | None
    """None without a second grader."""
    errors: Mapping[str, int]
    """Gradings without a score, by family."""


@dataclass(slots=True)
class _Asking:
    """Gradings at the same time, up to a number; what fails is counted."""

    slots: asyncio.Semaphore
    errors: Counter[str] = field(default_factory=Counter[str])

    async def scores(self, grader: Grader, rollouts: Sequence[Rollout]) -> list[float | None]:
        return list(await asyncio.gather(*(self._score(grader, *one) for one in rollouts)))

    async def _score(self, grader: Grader, task: Task, trajectory: Trajectory) -> float | None:
        async with self.slots:
            try:
                grade = await grader.grade(task, trajectory, None)
            except GraderError as error:
                self.errors[error.code] += 1
                return None
        if grade.score is None and grade.failure is not None:
            self.errors[grade.failure.code or "other_error"] += 1
        return grade.score


async def agreement(
    grader: Grader,
    rollouts: Sequence[Rollout],
    *,
    second: Grader | None = None,
    good: Sequence[Rollout] = (),
    bad: Sequence[Rollout] = (),
    times: int = 5,
    pass_threshold: float = 0.5,
    max_concurrent: int = 8,
) -> Reliability:
    """Grade every rollout `times` over, and whatever else there is to compare with.

    Graders that need an open environment cannot be asked again. Raises ConfigError for `times` below 2.
    """
    if times < 2:
        raise ConfigError(f"repeats: {times} gradings of a rollout tell nothing; at least 2 do")
    asking = _Asking(asyncio.Semaphore(max_concurrent))
    rounds = [await asking.scores(grader, rollouts) for _ in range(times)]
    own = {
        str(i): [s for s in of if s is not None] for i, of in enumerate(zip(*rounds, strict=True))
    }
    means = {item: sum(scores) / len(scores) for item, scores in own.items() if scores}

    async def compared(other: Grader | None) -> Agreement | None:
        if other is None:
            return None
        others = await asking.scores(other, rollouts)
        theirs = {str(i): score for i, score in enumerate(others) if score is not None}
        if not means.keys() & theirs.keys():
            return None
        return compare(means, theirs, pass_threshold=pass_threshold)

    known = [_by_task(of, await asking.scores(grader, of)) for of in (good, bad)]
    return Reliability(
        repeats=repeats(own, pass_threshold=pass_threshold)
        if any(len(scores) > 1 for scores in own.values())
        else None,
        order=await compared(_reversed(grader)),
        anchors=anchors(*known) if known[0].keys() & known[1].keys() else None,
        second=await compared(second),
        errors=dict(asking.errors),
    )


def _reversed(grader: Grader) -> Grader | None:
    """Return the grader with its labels offered the other way round."""
    if not isinstance(grader, ModelGrader) or not isinstance(grader.scale, LabelScale):
        return None
    return replace(grader, scale=replace(grader.scale, labels=grader.scale.labels[::-1]))


def _by_task(rollouts: Sequence[Rollout], scores: Sequence[float | None]) -> dict[str, list[float]]:
    result: dict[str, list[float]] = {}
    for (task, _), score in zip(rollouts, scores, strict=True):
        if score is not None:
            result.setdefault(task.id, []).append(score)
    return result
