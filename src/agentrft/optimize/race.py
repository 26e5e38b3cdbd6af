"""Successive halving: all arms meet the same pairs, the better half goes on. The base always does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agentrft.core.grade import GradedTrajectory
from agentrft.optimize.purse import Pair, Purse, interleaved
from agentrft.optimize.trials import passed
from agentrft.optimize.variants import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where one arm ended."""

    variant: Variant
    pass_rate: float
    score: float
    """Mean; decides between equal pass rates."""
    pairs: int
    ended: str
    """The last round it ran in."""

    @property
    def rank(self) -> tuple[float, float]:
        """What arms of the same round are ordered by."""
        return self.pass_rate, self.score


async def race(
    arms: Sequence[Variant],
    always: int,
    purse: Purse,
    pairs: Callable[[int], Sequence[Pair]],
    *,
    tasks: int,
    finish: int,
    threshold: float,
    name: str,
) -> list[Placed]:
    """Return all arms that ran, best first; those of a later round before those of an earlier one.

    The first `always` arms are never dropped. `pairs(n)` gives the first n pairs; each round takes
    twice as many as the last, until `finish` others are left. Empty if the budget did not hold half of
    the first round.
    """
    field, dropped = list(arms), list[Placed]()
    standing = list[Placed]()
    number = 1
    while True:
        purpose = f"{name} round {number}"
        shared = pairs(tasks * 2 ** (number - 1))
        graded = await purse.afford(interleaved(field, "dev", shared, purpose), unit=len(field))
        if len(graded) <= len(field) * (len(shared) // 2):
            # Half a first round is a lottery, half a later one holds nothing new.
            return [*standing, *dropped]
        placed = [
            _placed(variant, graded[place :: len(field)], threshold, purpose)
            for place, variant in enumerate(field)
        ]
        kept, others = placed[:always], placed[always:]
        # A stable sort: between equals the one that was predicted to be better.
        others.sort(key=lambda one: one.rank, reverse=True)
        standing = sorted([*kept, *others], key=lambda one: one.rank, reverse=True)
        if len(others) <= finish or len(graded) < len(field) * len(shared):
            return [*standing, *dropped]
        going = max(finish, (len(others) + 1) // 2)
        dropped = [*others[going:], *dropped]
        standing = [one for one in standing if one not in dropped]
        field = [one.variant for one in (*kept, *others[:going])]
        number += 1


def _placed(
    variant: Variant, graded: Sequence[GradedTrajectory], threshold: float, ended: str
) -> Placed:
    solved = [seen for one in graded if (seen := passed(one, threshold)) is not None]
    scores = [
        one.grade.score
        for one in graded
        if passed(one, threshold) is not None and one.grade.score is not None
    ]
    return Placed(
        variant=variant,
        pass_rate=float(np.mean(solved)) if solved else 0.0,
        score=float(np.mean(scores)) if scores else 0.0,
        pairs=len(solved),
        ended=ended,
    )
