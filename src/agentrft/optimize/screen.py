"""What a screening design says: each setting's effect, and which combinations to race. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import t

from agentrft.measure.search_summary import KnobEffect
from agentrft.measure.statistics import Estimate
from agentrft.optimize.design import Design
from agentrft.optimize.variants import Knob

Floats = NDArray[np.float64]
"""Observations are (configurations, rollouts of each); NaN where infrastructure took one."""

FEW_PASSES = 0.03
"""Below this share of solved rollouts, or above one minus it, the screen goes by the mean score."""
KNOB_DEVIATION = 0.8
"""Standard deviation, in logits, that the model expects of a setting's effect."""
TASK_DEVIATION = 2.0
"""The same for how much tasks differ in difficulty."""
CLEAR = 1.0
"""Standard errors from which a gain enters the sparing combination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """What was learned."""

    effects: tuple[KnobEffect, ...]
    candidates: tuple[tuple[int, ...], ...]
    """Levels by knob: best predicted, then the best with clear gains only, then its neighbours by
    predicted loss."""
    by_score: bool
    """Too few rollouts passed (or failed) to compare pass rates."""


def screened(
    design: Design, knobs: Sequence[Knob], passes: Floats, scores: Floats, tasks: Sequence[str]
) -> Screened:
    """Fit main effects. `tasks` names the task of each column of the observations."""
    solved = float(np.nanmean(passes))
    by_score = not FEW_PASSES <= solved <= 1 - FEW_PASSES
    gains, errors, tasks_seen = _effects(design, scores if by_score else passes, tasks)
    worth = gains if by_score else _worth(design, passes, tasks)
    half = errors * float(t.ppf(0.975, max(1, tasks_seen - 1)))
    effects: list[KnobEffect] = []
    for knob, found, width, level_of_row in zip(knobs, gains, half, design.T, strict=True):
        for number, level in enumerate(knob.levels, start=1):
            value, wide = float(found[number]), float(width[number])
            effects.append(
                KnobEffect(
                    knob=knob.name,
                    level=level.name,
                    effect=Estimate(
                        value=value,
                        low=max(-1.0, value - wide),
                        high=min(1.0, value + wide),
                        method=f"{'mean score' if by_score else 'pass rate'}, t over tasks",
                    ),
                    rollouts=int(np.isfinite(passes[level_of_row == number]).sum()),
                    source=knob.source,
                    treats=tuple(knob.treats),
                    why=level.why,
                )
            )
    counts = [len(knob.levels) + 1 for knob in knobs]
    candidates = _candidates(worth, gains, errors, counts)
    return Screened(effects=tuple(effects), candidates=candidates, by_score=by_score)


def _effects(design: Design, values: Floats, tasks: Sequence[str]) -> tuple[Floats, Floats, int]:
    """Return each level's mean gain over the baseline's and its standard error, and the tasks.

    Every task meets every configuration, so each task has an estimate of its own; their mean needs
    no correction for difficulty, and their spread is the error that clusters by task.
    """
    coded, places = _coded(design)
    project = np.linalg.pinv(np.column_stack([np.ones(len(design)), coded]))[1:]
    names, member = np.unique(np.array(tasks), return_inverse=True)
    filled = _filled(values)
    of_task = np.stack([filled[:, member == i].mean(axis=1) for i in range(len(names))])
    found = of_task @ project.T
    error = np.full(len(places), np.inf)
    if len(names) > 1:
        error = found.std(axis=0, ddof=1) / np.sqrt(len(names))
    shape = (design.shape[1], int(design.max()) + 1)
    gains, errors = np.zeros(shape), np.zeros(shape)
    for column, (knob, level) in enumerate(places):
        gains[knob, level] = found.mean(axis=0)[column]
        errors[knob, level] = error[column]
    return gains, errors, len(names)


def _worth(design: Design, passes: Floats, tasks: Sequence[str]) -> Floats:
    """Return each level's gain in logits by a logistic model with L2 on levels and on tasks."""
    coded, places = _coded(design)
    names, member = np.unique(np.array(tasks), return_inverse=True)
    row, cell = np.nonzero(np.isfinite(passes))
    X = np.concatenate([np.ones((len(row), 1)), np.eye(len(names))[member[cell]], coded[row]], 1)
    y = passes[row, cell]
    ridge = np.concatenate(
        [
            [1e-6],
            np.full(len(names), TASK_DEVIATION**-2.0),
            np.full(len(places), KNOB_DEVIATION**-2),
        ]
    )
    beta = np.zeros(X.shape[1])
    for _ in range(_NEWTON_STEPS):
        mean = expit(X @ beta)
        weight = np.maximum(mean * (1 - mean), 1e-6)
        hessian = (X.T * weight) @ X + np.diag(ridge)
        step = np.linalg.solve(hessian, X.T @ (y - mean) - ridge * beta)
        beta += step
        if np.abs(step).max() < 1e-8:
            break
    worth = np.zeros((design.shape[1], int(design.max()) + 1))
    for value, (knob, level) in zip(beta[-len(places) :], places, strict=True):
        worth[knob, level] = value
    return worth


_NEWTON_STEPS = 50


def _candidates(
    worth: Floats, gains: Floats, errors: Floats, counts: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    worth = worth.round(9)  # between equals the baseline's setting, not the last digit, decides
    best = tuple(int(np.argmax(worth[k, :n])) for k, n in enumerate(counts))
    sparing = tuple(
        level if gains[k, level] > CLEAR * errors[k, level] else 0 for k, level in enumerate(best)
    )
    around = [
        (float(worth[k, best[k]] - worth[k, level]), (*best[:k], level, *best[k + 1 :]))
        for k, n in enumerate(counts)
        for level in range(n)
        if level != best[k]
    ]
    ranked = [best, sparing, *(levels for _, levels in sorted(around))]
    return tuple(dict.fromkeys(levels for levels in ranked if any(levels)))


def _coded(design: Design) -> tuple[Floats, list[tuple[int, int]]]:
    """Return 0/1 columns for every level beside the baseline's, and which knob and level each is."""
    places = [
        (k, level) for k in range(design.shape[1]) for level in range(1, design[:, k].max() + 1)
    ]
    return np.column_stack([design[:, k] == level for k, level in places]).astype(float), places


def _filled(values: Floats) -> Floats:
    """Put the additive expectation where infrastructure took a rollout."""
    if np.isfinite(values).all():
        return values
    grand = np.nanmean(values)
    rows, columns = (
        np.array([np.nanmean(line) if np.isfinite(line).any() else grand for line in lines])
        for lines in (values, values.T)
    )
    expected = rows[:, None] + columns[None, :] - grand
    return np.where(np.isfinite(values), values, expected)
