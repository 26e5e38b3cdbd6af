"""How far a grader that judges can be relied on: with itself, with another, on cases that are clear.

Pure: scores in, numbers with intervals out, seeded draws. Items are tasks, or rollouts of them; repeats
of one item are never counted as independent.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentrft.measure.ranks import spearman
from agentrft.measure.statistics import (
    Estimate,
    PairedDifference,
    mean,
    paired_difference,
    rate,
    wilson,
)

DRAWS = 2000
"""Resamples of items behind the interval of a correlation."""
TOLERANCE = 0.1
"""Scores no further apart than this agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """What happens when the same thing is graded again."""

    items: int
    flips: Estimate
    """Chance that of two gradings one passes and the other does not."""
    spread: Estimate
    """Standard deviation of an item's scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Whether outputs known to be good score above outputs of the same task known to be bad."""

    tasks: int
    ordered: Estimate
    """Chance that the good one of a pair scores higher; a tie counts half."""
    lowest_good: float
    highest_bad: float

    @property
    def separated(self) -> bool:
        """Whether one threshold tells all good from all bad, over all tasks."""
        return self.lowest_good > self.highest_bad


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two graders, or one asked in two ways, over the same items."""

    items: int
    within: Estimate
    """Share of items on which the scores are no more than the tolerance apart."""
    same_side: Estimate
    """Share of items on which both pass or both fail."""
    spearman: Estimate | None
    """Rank correlation; None if one of them gives everything the same score."""
    kappa: Estimate | None
    """Quadratic-weighted kappa: 0 is what chance gives, 1 is agreement; None likewise."""
    difference: PairedDifference
    """How much higher the second scores."""


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


def repeats(scores: Mapping[str, Sequence[float]], *, pass_threshold: float) -> Repeats:
    """Measure repeated gradings by item. Raises ValueError if no item was graded twice."""
    again = {item: values for item, values in scores.items() if len(values) > 1}
    if not again:
        raise ValueError("no item was graded twice; repeats cannot be compared")
    passed = {item: [v >= pass_threshold for v in values] for item, values in again.items()}
    flips = {
        item: [one != other for one, other in itertools.combinations(values, 2)]
        for item, values in passed.items()
    }
    return Repeats(
        items=len(again),
        flips=rate(flips),
        spread=mean({item: [statistics.stdev(values)] for item, values in again.items()}),
    )


def anchors(good: Mapping[str, Sequence[float]], bad: Mapping[str, Sequence[float]]) -> Anchors:
    """Compare good and bad outputs by task. Raises ValueError without a task that has both."""
    tasks = [task for task in good if good[task] and bad.get(task)]
    if not tasks:
        raise ValueError("no task has both a good and a bad output; there is nothing to tell apart")
    ordered = [
        statistics.fmean(
            0.5 + 0.5 * ((g > b) - (g < b)) for g, b in itertools.product(good[task], bad[task])
        )
        for task in tasks
    ]
    value = statistics.fmean(ordered)
    low, high = wilson(value, len(tasks))
    return Anchors(
        tasks=len(tasks),
        ordered=Estimate(value=value, low=low, high=high, method="Wilson over tasks"),
        lowest_good=min(score for task in tasks for score in good[task]),
        highest_bad=max(score for task in tasks for score in bad[task]),
    )


def compare(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    pass_threshold: float,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Agreement:
    """Compare scores of the items that both have. Raises ValueError if there is none."""
    items = [item for item in first if item in second]
    if not items:
        raise ValueError("the two have no item in common; nothing can be compared")
    pairs = [(first[item], second[item]) for item in items]
    # A difference of exactly the tolerance must not depend on how a sum was rounded.
    within = [abs(a - b) <= tolerance + 1e-9 for a, b in pairs]
    same_side = [(a >= pass_threshold) == (b >= pass_threshold) for a, b in pairs]
    return Agreement(
        items=len(items),
        within=rate({item: [flag] for item, flag in zip(items, within, strict=True)}),
        same_side=rate({item: [flag] for item, flag in zip(items, same_side, strict=True)}),
        spearman=_with_interval(spearman, pairs, seed),
        kappa=_with_interval(weighted_kappa, pairs, seed),
        difference=paired_difference(
            {item: [first[item]] for item in items}, {item: [second[item]] for item in items}
        ),
    )


def weighted_kappa(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Cohen's kappa with quadratic weights, of numbers or of ranks of ordered labels.

    1 minus the mean squared difference over what it would be if the second's scores were dealt out at
    random; for whole-numbered ratings this is the usual kappa. None if there is nothing to deal out.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    chance = float(a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    if chance == 0:
        return None
    return 1 - float(((a - b) ** 2).mean()) / chance


def _with_interval(
    statistic: Callable[[Sequence[float], Sequence[float]], float | None],
    pairs: Sequence[tuple[float, float]],
    seed: int,
) -> Estimate | None:
    """Return a statistic of pairs with a percentile bootstrap interval over items."""
    value = statistic([a for a, _ in pairs], [b for _, b in pairs])
    if value is None:
        return None
    random = np.random.default_rng(seed)
    table: NDArray[np.float64] = np.array(pairs, np.float64)
    drawn = (
        statistic(list(sample[:, 0]), list(sample[:, 1]))
        for sample in (table[random.integers(0, len(table), len(table))] for _ in range(DRAWS))
    )
    # Resamples in which one side has no spread say nothing.
    found = [one for one in drawn if one is not None]
    low, high = np.quantile(found, [0.025, 0.975]) if found else (value, value)
    return Estimate(
        value=value, low=float(low), high=float(high), method="bootstrap, clustered by item"
    )
