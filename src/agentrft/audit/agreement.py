"""Asks a model grader again, with its labels turned round, about clear cases, and asks a second one."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agentrft.audit.probe import Arena, Subject
from agentrft.audit.run import chosen
from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.protocols import Grader
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.model_grader import LabelScale, ModelGrader
from agentrft.measure.agreement import Agreement, Reliability, anchors, compare, repeats

Rollout = tuple[Task, Trajectory]

ANCHORS = 8
"""Rows whose right answer, and whose wrong one, is graded again and again."""


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


async def reliability_of(
    subject: Subject, *, rows: int, seed: int, second: Grader | None
) -> Reliability:
    """Ask a subject's grader about right answers of some rows and about another row's in their place.

    Raises ConfigError if fewer than two right answers are known.
    """
    arena = Arena(subject, chosen(subject, rows, seed), seed=seed, deadline=math.inf)
    good: list[Rollout] = []
    bad: list[Rollout] = []
    for task in arena.with_answers[:ANCHORS]:
        other = arena.other(0, task)
        if other is not None:
            good.append((task, arena.right(task).trajectory))
            bad.append((task, arena.acts(task, other.calls, other.text).trajectory))
    if not good:
        raise ConfigError(
            "agreement needs right answers of two rows or more; name their key with --reference"
        )
    return await agreement(subject.grader, [*good, *bad], second=second, good=good, bad=bad)


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
