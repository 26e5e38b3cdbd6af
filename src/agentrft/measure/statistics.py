"""Rates, paired differences and their intervals. Pure: numbers in, numbers out, seeded draws.

Everything clusters by task: repeats of one task are never counted as independent. Families are not
clusters here: a holdout has about ten of them, and a sign-flip test over ten clusters cannot go
below p = 0.002, nor does a bootstrap over ten reach its nominal coverage. Whoever wants them passes
`clusters`; reports show families side by side instead. The claim is thus about tasks of these
families, not about new families.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist, fmean, variance

import numpy as np
from numpy.typing import NDArray

Values = Mapping[str, Sequence[float]]
"""Task id to one value per rollout of that task."""

EXACT_CLUSTERS = 14
"""Up to so many clusters the permutation test visits all 2^n sign patterns."""
DRAWS = 10_000
"""Seeded draws of bootstraps, and of the permutation test beyond `EXACT_CLUSTERS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float
    method: str
    """How the interval was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """How much larger the second policy's values are, over the tasks both tried."""

    value: float
    low: float
    high: float
    """95% cluster bootstrap interval of `value` unless another level was asked for."""
    p_value: float
    test: str
    """`exact sign-flip`, `sampled sign-flip` or `exact McNemar`."""
    tasks: int
    clusters: int
    wins: int
    """Tasks on which the second policy has the larger mean."""
    losses: int


def pass_at_k(passed: Mapping[str, Sequence[bool]], k: int) -> float:
    """Return the chance that at least one of k rollouts passes: mean of 1 - C(n-c, k) / C(n, k).

    Unbiased per task, then averaged (Chen et al. 2021). Raises ValueError if a task has under k.
    """
    return _mean_over_tasks(passed, k, lambda n, c: 1 - math.comb(n - c, k) / math.comb(n, k))


def pass_hat_k(passed: Mapping[str, Sequence[bool]], k: int) -> float:
    """Return the chance that all of k rollouts pass: mean of C(c, k) / C(n, k).

    Unbiased per task, then averaged (tau-bench, Yao et al. 2024). Raises ValueError if a task has
    fewer than k rollouts.
    """
    return _mean_over_tasks(passed, k, lambda n, c: math.comb(c, k) / math.comb(n, k))


def rate(passed: Values, *, level: float = 0.95, between: float = 0.0) -> Estimate:
    """Return pass@1 with a Wilson interval at the effective sample size.

    The effective size is p(1-p) over the variance of the mean of task means: exactly the number of
    tasks with one rollout each, more with repeats that vary within a task, never above the number
    of rollouts. At 0 or 1, where nothing varies, it is the number of tasks. So the interval never
    collapses and never takes repeats for new tasks (Korn and Graubard 1998). `between` is what
    something besides the tasks adds to that variance.
    """
    means = _task_means(passed)
    p, tasks = float(means.mean()), len(means)
    rollouts = sum(len(values) for values in passed.values())
    spread = float(means.var()) / tasks + between
    varies = 0 < p < 1
    effective = float(tasks)
    if varies:
        effective = min(p * (1 - p) / spread, rollouts) if spread else float(rollouts)
    low, high = wilson(p, effective, level=level)
    return Estimate(value=p, low=low, high=high, method="Wilson, clustered by task")


def wilson(p: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a rate p seen over n trials; n need not be whole."""
    if n <= 0 or not 0 <= p <= 1:
        raise ValueError(f"a rate lies in [0, 1] over at least one trial, got {p} over {n}")
    z = _quantile(level)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if p == 0 else max(0.0, centre - half)), (
        1.0 if p == 1 else min(1.0, centre + half)
    )


def mean(values: Values, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Return the mean of task means with a percentile bootstrap interval over tasks."""
    means = _task_means(values)
    low, high = _bootstrap(means, np.ones_like(means), level=level, seed=seed)
    return Estimate(
        value=float(means.mean()), low=low, high=high, method="bootstrap, clustered by task"
    )


def paired_difference(
    first: Values,
    second: Values,
    *,
    clusters: Mapping[str, str] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Compare two policies over the tasks both tried: d_i = mean_k(second) - mean_k(first).

    Null hypothesis: within each cluster (a task unless `clusters` maps tasks to others) the two
    policies are exchangeable. One 0/1 rollout per task and policy makes the test McNemar's.
    Raises ValueError without a common task.
    """
    tasks = [task for task in first if second.get(task) and first[task]]
    if not tasks:
        raise ValueError("the two policies share no task; compare results of the same split")
    d = np.array([_mean(second[task]) - _mean(first[task]) for task in tasks])
    d[np.abs(d) < 1e-12] = 0.0
    names = tasks if clusters is None else [clusters[task] for task in tasks]
    _, member = np.unique(np.array(names), return_inverse=True)
    sums, sizes = _per_cluster(member, d), _per_cluster(member, np.ones_like(d))
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    binary = all(_single_binary(values[task]) for values in (first, second) for task in tasks)
    if binary and clusters is None:
        p_value, test = mcnemar(wins, losses), "exact McNemar"
    else:
        p_value, test = sign_flip(sums.tolist(), seed=seed)
    low, high = _bootstrap(sums, sizes, level=level, seed=seed)
    return PairedDifference(
        value=float(d.mean()),
        low=low,
        high=high,
        p_value=p_value,
        test=test,
        tasks=len(tasks),
        clusters=len(sums),
        wins=wins,
        losses=losses,
    )


def pooled(seeds: Sequence[Values]) -> Values:
    """Return the rollouts of one seed as they are, of several the mean of each seed, by task."""
    if len(seeds) == 1:
        return seeds[0]
    tasks = dict.fromkeys(task for values in seeds for task in values)
    return {task: [_mean(values[task]) for values in seeds if values.get(task)] for task in tasks}


def seeded_rate(seeds: Sequence[Values], *, level: float = 0.95) -> Estimate:
    """Return pass@1 of a policy that was made several times, with tasks and seeds as clusters.

    The variance of the seeds' mean is added to that of the tasks' mean, and their common part not
    taken off again: more cautious than Cameron, Gelbach and Miller (2011).
    """
    if len(seeds) == 1:
        return rate(seeds[0], level=level)
    between = variance([float(_task_means(values).mean()) for values in seeds]) / len(seeds)
    found = rate(pooled(seeds), level=level, between=between)
    return replace(found, method="Wilson, clustered by task and by seed")


def seeded_difference(
    first: Sequence[Values], second: Sequence[Values], *, level: float = 0.95, seed: int = 0
) -> PairedDifference:
    """Compare two policies that were made several times, over the tasks both tried.

    The interval draws the tasks, and the seeds of each policy, with replacement and independently of
    each other (pigeonhole bootstrap, Owen 2007): over tasks alone it would speak of these very
    weights, not of training that way. The test is over tasks, given these seeds; with two or three of
    them there is no test over seeds that could ever reject.
    """
    found = paired_difference(pooled(first), pooled(second), level=level, seed=seed)
    if len(first) == len(second) == 1:
        return found
    tasks = sorted(pooled(first).keys() & pooled(second).keys())
    random = np.random.default_rng((seed, len(first), len(second)))
    means = _drawn_seeds(second, tasks, random) - _drawn_seeds(first, tasks, random)
    drawn = _resamples(len(tasks), seed)
    there = ~np.isnan(means)
    ratios = (drawn * np.nan_to_num(means)).sum(axis=1) / (drawn * there).sum(axis=1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return replace(found, low=float(low), high=float(high))


def _drawn_seeds(
    seeds: Sequence[Values], tasks: Sequence[str], random: np.random.Generator
) -> NDArray[np.float64]:
    """Return each task's mean over seeds drawn with replacement, per draw; NaN where none has it."""
    values = np.array([[fmean(of.get(task) or [math.nan]) for task in tasks] for of in seeds])
    counts = random.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=DRAWS)
    with np.errstate(invalid="ignore"):
        return (counts @ np.nan_to_num(values)) / (counts @ ~np.isnan(values))


def sign_flip(differences: Sequence[float], *, seed: int = 0) -> tuple[float, str]:
    """Return the two-sided p-value that these differences have no direction, and the test's name.

    Zeros cannot flip and are left out. Ties with the observed sum count as extreme.
    """
    moved = np.array([value for value in differences if value])
    if not len(moved):
        return 1.0, "exact sign-flip"
    # Float sums of the same magnitudes in another order differ in the last digits.
    observed = abs(float(moved.sum())) * (1 - 1e-9) - 1e-12
    if len(moved) <= EXACT_CLUSTERS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(moved))))
        return float((np.abs(signs @ moved) >= observed).mean()), "exact sign-flip"
    random = np.random.default_rng(seed)
    signs = random.integers(0, 2, size=(DRAWS, len(moved))) * 2.0 - 1.0
    extreme = int((np.abs(signs @ moved) >= observed).sum())
    # The observed pattern is one of the draws, so that p is never 0 (Phipson and Smyth 2010).
    return (extreme + 1) / (DRAWS + 1), "sampled sign-flip"


def mcnemar(wins: int, losses: int) -> float:
    """Return McNemar's exact two-sided p-value: a fair coin over the tasks that changed."""
    changed = wins + losses
    tail = sum(math.comb(changed, i) for i in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**changed)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's adjusted p-values in the order given; they bound the family-wise error."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    ranked = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(ranked):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def _bootstrap(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], *, level: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(sizes) when clusters are drawn with replacement."""
    counts = _resamples(len(sums), seed)
    ratios = (counts @ sums) / (counts @ sizes)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resamples(clusters: int, seed: int) -> NDArray[np.float64]:
    """How often each cluster is drawn, per draw; kept, since a report asks for the same again."""
    random = np.random.default_rng(seed)
    counts = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=DRAWS)
    return counts.astype(np.float64)


def _per_cluster(member: NDArray[np.intp], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.bincount(member, weights=values).astype(np.float64)


def _mean_over_tasks(
    passed: Mapping[str, Sequence[bool]], k: int, of_task: Callable[[int, int], float]
) -> float:
    short = [task for task, values in passed.items() if len(values) < k]
    if short or k < 1 or not passed:
        raise ValueError(
            f"k={k} needs at least one task and k rollouts of each; {short[:3]} have fewer"
        )
    return _mean([of_task(len(values), sum(values)) for values in passed.values()])


def _task_means(values: Values) -> NDArray[np.float64]:
    means = [_mean(of_task) for of_task in values.values() if of_task]
    if not means:
        raise ValueError("no task has a graded rollout; nothing can be measured")
    return np.array(means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _single_binary(values: Sequence[float]) -> bool:
    return len(values) == 1 and values[0] in (0, 1)


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
