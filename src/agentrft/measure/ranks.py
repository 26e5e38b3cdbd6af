"""How one score orders the same things as another: over everything, and inside each group.

A policy gradient sees only differences inside a group, so that is where a change of grader matters.
Pure: numbers in, numbers out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

DIGITS = 9
"""Scores that agree to so many decimal places are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChange:
    """What a second score would change for a policy gradient, over groups of two or more."""

    groups: int
    spread_before: int
    """Groups whose scores differ, so that something can be learned from them."""
    spread_after: int
    reordered: int
    """Groups in which at least two members changed places."""
    members: int
    sign_flips: int
    """Members above the group's mean before and below it now, or the other way round."""
    tau_b: float | None
    """Pooled over the pairs inside groups; None if one score has no spread in any of them."""
    spearman: float | None
    """Of the ranks inside groups, likewise."""


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Kendall's tau-b, in O(n log n); None if either has no spread."""
    from scipy import stats

    x, y = _numbers(first), _numbers(second)
    if not (_varies(x) and _varies(y)):
        return None
    result: Any = stats.kendalltau(x, y)
    return float(result.statistic)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None if either has no spread."""
    return _correlation(ranks(first), ranks(second))


def ranks(values: Sequence[float] | Numbers) -> Numbers:
    """Return ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(_numbers(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - (counts - 1) / 2)[place]).astype(np.float64)


def group_change(
    groups: Sequence[int], first: Sequence[float], second: Sequence[float]
) -> GroupChange:
    """Compare two scores inside groups: `groups` names the group of each member by a number.

    Groups of one are left out: they carry no gradient.
    """
    number, before, after = np.asarray(groups), _numbers(first), _numbers(second)
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order])) + 1
    members = [index for index in np.split(order, starts) if len(index) > 1]
    spread_before = spread_after = reordered = flips = 0
    agreement = pairs_before = pairs_after = 0.0
    centred: tuple[list[Numbers], list[Numbers]] = ([], [])
    for index in members:
        old, new = before[index], after[index]
        spread_before += _varies(old)
        spread_after += _varies(new)
        flips += int((_advantages(old) * _advantages(new) < 0).sum())
        upper = np.triu_indices(len(index), k=1)
        was, now = _pairs(old, upper), _pairs(new, upper)
        reordered += bool((was * now < 0).any())
        agreement += float((was * now).sum())
        pairs_before += float(np.abs(was).sum())
        pairs_after += float(np.abs(now).sum())
        for kept, values in zip(centred, (old, new), strict=True):
            ranked = ranks(values)
            kept.append(ranked - ranked.mean())
    scale = float(np.sqrt(pairs_before * pairs_after))
    return GroupChange(
        groups=len(members),
        spread_before=spread_before,
        spread_after=spread_after,
        reordered=reordered,
        members=sum(len(index) for index in members),
        sign_flips=flips,
        tau_b=agreement / scale if scale else None,
        spearman=_correlation(*(np.concatenate(kept) for kept in centred)) if members else None,
    )


def _numbers(values: Sequence[float] | Numbers) -> Numbers:
    return np.round(np.asarray(values, dtype=np.float64), DIGITS)


def _varies(values: Numbers) -> bool:
    return bool(len(values) > 1 and values.max() > values.min())


def _advantages(scores: Numbers) -> Numbers:
    return np.round(scores - scores.mean(), DIGITS)


def _pairs(values: Numbers, upper: tuple[NDArray[np.intp], NDArray[np.intp]]) -> Numbers:
    return np.sign(values[upper[0]] - values[upper[1]])


def _correlation(first: Numbers, second: Numbers) -> float | None:
    if not (_varies(first) and _varies(second)):
        return None
    return float(np.corrcoef(first, second)[0, 1])
