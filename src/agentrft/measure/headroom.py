"""Whether specs make a difference at all: a cheap test before a search is paid for. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentrft.measure.statistics import PairedDifference, Values, paired_difference

DRAWS = 4_000
LEVEL = 0.1
"""p of the analysis of variance below which specs differ."""
HARM = -0.02
"""How far below zero the interval of the best spec's gain may reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """What a few deliberately different specs did on the same tasks."""

    specs: int
    """The baseline among them."""
    tasks: int
    p_value: float
    """That all specs solve these tasks alike."""
    best: PairedDifference
    """The best of the others minus the baseline; chosen after the fact, so it flatters."""
    positive: bool


def headroom(baseline: Values, others: Sequence[Values], *, gain: float, seed: int = 0) -> Headroom:
    """Test whether the specs differ, or the best of them gains at least this much.

    Repeats of a task are averaged; then a permutation analysis of variance shuffles specs within
    each task that all of them tried. Raises ValueError without another spec or a common task.
    """
    arms = (baseline, *others)
    tasks = [task for task in baseline if all(arm.get(task) for arm in arms)]
    if not others or not tasks:
        raise ValueError("headroom is tested with at least two specs on the same tasks")
    means = np.array([[float(np.mean(arm[task])) for arm in arms] for task in tasks])
    spread = _between(means[None])[0]
    shuffled = np.random.default_rng(seed).permuted(
        np.broadcast_to(means, (DRAWS, *means.shape)), axis=2
    )
    p_value = (1 + int((_between(shuffled) >= spread - 1e-12).sum())) / (DRAWS + 1)
    best = others[int(means[:, 1:].mean(axis=0).argmax())]
    difference = paired_difference(
        {task: baseline[task] for task in tasks}, {task: best[task] for task in tasks}, seed=seed
    )
    return Headroom(
        specs=len(arms),
        tasks=len(tasks),
        p_value=p_value,
        best=difference,
        positive=p_value < LEVEL
        or (difference.value >= gain - 1e-9 and difference.low >= HARM - 1e-9),
    )


def _between(means_DTS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance over specs S of their means over tasks T, per draw D; all else stays as it was."""
    return means_DTS.mean(axis=1).var(axis=1)
