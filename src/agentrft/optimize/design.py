"""Which combinations of settings to try, so that every rollout informs on every knob. Pure."""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Design = NDArray[np.intp]
"""One row per configuration, one column per knob; entries are levels, 0 is the baseline's."""

STARTS = 4
"""Random starts of the exchange; the best end is taken."""


def screening_design(levels: Sequence[int], configurations: int, *, seed: int) -> Design:
    """Return a near-orthogonal design; row 0 is the baseline and every level is about as frequent.

    `levels` counts the settings of each knob, the baseline's included. All combinations are listed
    if there are no more than `configurations`; otherwise there are at least as many rows as a
    main-effects model has parameters and a few to spare. Raises ValueError for a knob without a
    level beside the baseline's.
    """
    if not levels or min(levels) < 2:
        raise ValueError(f"every knob needs a level beside the baseline's, got {tuple(levels)}")
    return _screening_design(tuple(levels), configurations, seed).copy()


@lru_cache(maxsize=64)
def _screening_design(levels: tuple[int, ...], configurations: int, seed: int) -> Design:
    rows = max(configurations, 1 + sum(levels) - len(levels) + _SPARE)
    if math.prod(levels) <= rows:
        return np.array(list(itertools.product(*(range(n) for n in levels))), dtype=np.intp)
    random = np.random.default_rng(seed)
    found = [_exchanged(levels, rows, random) for _ in range(STARTS)]
    return min(found, key=lambda pair: pair[0])[1]


_SPARE = 3


def imbalance(design: Design) -> float:
    """Return the summed squares of how far each pair of levels is from being equally frequent."""
    coded = [_centred(column) for column in design.T]
    pairs = itertools.combinations(coded, 2)
    return float(sum(((first.T @ second) ** 2).sum() for first, second in pairs))


def _exchanged(
    levels: tuple[int, ...], rows: int, random: np.random.Generator
) -> tuple[float, Design]:
    """Swap entries within columns while that brings pairs of levels nearer to equal counts."""
    design = np.stack([_balanced(n, rows, random) for n in levels], axis=1)
    improved = True
    while improved:
        improved = False
        for knob in range(len(levels)):
            others = [_centred(design[:, k]) for k in range(len(levels)) if k != knob]
            if not others:
                break
            Z = np.concatenate(others, axis=1)
            while (swap := _best_swap(design[:, knob], Z)) is not None:
                a, b = swap
                design[[a, b], knob] = design[[b, a], knob]
                improved = True
    return imbalance(design), design


def _best_swap(column: NDArray[np.intp], Z: NDArray[np.float64]) -> tuple[int, int] | None:
    """Return the two rows whose exchange lowers the imbalance most; None if none does.

    With S the sums of Z over the rows of each level and d = z_b - z_a, exchanging rows a and b of
    levels s and t changes |S_s|^2 + |S_t|^2 by 2 d(S_s - S_t) + 2 |d|^2.
    """
    S = np.eye(int(column.max()) + 1)[column].T @ Z
    products = Z @ S.T
    own = products[np.arange(len(column)), column]
    other = products[:, column]
    """[i, j]: row i of Z times the sums of the level that row j has."""
    gram = Z @ Z.T
    squares = np.diag(gram)
    distance = squares[:, None] + squares[None, :] - 2 * gram
    change = 2 * ((other.T - own[:, None]) - (own[None, :] - other)) + 2 * distance
    change[column[:, None] == column[None, :]] = 0.0
    change[0, :] = change[:, 0] = 0.0  # row 0 stays the baseline
    a, b = np.unravel_index(int(np.argmin(change)), change.shape)
    return (int(a), int(b)) if change[a, b] < -1e-9 else None


def _balanced(levels: int, rows: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Return a column in random order with each level about equally often and 0 on top."""
    column = np.arange(rows) % levels
    random.shuffle(column[1:])
    return column.astype(np.intp)


def _centred(column: NDArray[np.intp]) -> NDArray[np.float64]:
    coded = np.eye(int(column.max()) + 1)[column]
    return coded - coded.mean(axis=0)
