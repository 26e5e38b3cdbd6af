"""The formula against simulated comparisons, and against what it must say at its ends."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.special import expit, logit

from agentrft.measure.power import minimum_detectable, power, rollouts_needed
from agentrft.measure.statistics import sign_flip

MEAN, CONCENTRATION = 0.4, 1.2


def changed(difficulty: NDArray[np.float64], effect: float) -> NDArray[np.float64]:
    """Move all tasks alike on the logit scale, so that their mean moves by the effect."""
    scale = logit(difficulty)

    def missing(shift: float) -> float:
        return float(expit(scale + shift).mean()) - float(difficulty.mean()) - effect

    return expit(scale + root_scalar(missing, bracket=(-5, 20)).root)


def simulated_power(tasks: int, samples: int, effect: float, runs: int = 150) -> float:
    random = np.random.default_rng(1)
    many = random.beta(MEAN * CONCENTRATION, (1 - MEAN) * CONCENTRATION, 20_000)
    before = many.clip(1e-6, 1 - 1e-6)
    after = changed(before, effect)
    shown = 0
    for _ in range(runs):
        drawn = random.integers(0, len(before), tasks)
        first, second = (random.binomial(samples, arm[drawn]) for arm in (before, after))
        d = (second - first) / samples
        p_value, _ = sign_flip(d.tolist())
        shown += bool(d.sum() > 0 and p_value / 2 <= 0.05)
    return shown / runs


@pytest.mark.parametrize(
    ("tasks", "samples", "effect", "published"),
    [
        (20, 4, 0.10, 0.47),
        (20, 4, 0.20, 0.96),
        (50, 2, 0.10, 0.58),
        (50, 4, 0.10, 0.84),
        (100, 2, 0.10, 0.85),
        (50, 2, 0.15, 0.88),
    ],
)
def test_the_formula_agrees_with_simulated_comparisons(
    tasks: int, samples: int, effect: float, published: float
) -> None:
    told = power(effect, tasks, samples, p=MEAN)
    # 150 runs give each share a standard error of up to 0.04.
    assert told == pytest.approx(simulated_power(tasks, samples, effect), abs=0.1)
    assert told == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize(
    ("effect", "least", "most"), [(0.2, 40, 60), (0.15, 70, 90), (0.1, 150, 200), (0.05, 600, 800)]
)
def test_rollouts_needed_are_those_of_the_published_table(
    effect: float, least: int, most: int
) -> None:
    assert least <= rollouts_needed(effect, p=MEAN, samples=2) <= most


def test_needed_rollouts_and_detectable_effect_are_each_others_inverse() -> None:
    needed = rollouts_needed(0.12, p=0.3, samples=2)
    assert minimum_detectable(needed // 2, 2, p=0.3) <= 0.12
    assert minimum_detectable(needed // 2 - 1, 2, p=0.3) > 0.12


def test_repeats_help_less_than_tasks() -> None:
    tasks = minimum_detectable(200, 1, p=0.5)
    repeats = minimum_detectable(50, 4, p=0.5)
    assert tasks < repeats < minimum_detectable(50, 1, p=0.5)


def test_one_task_shows_nothing() -> None:
    assert power(0.5, 1, 100, p=0.5) == 0
    assert minimum_detectable(1, 100, p=0.5) == 1


def test_tasks_without_any_luck_still_have_to_change_often_enough_to_show() -> None:
    for p in (0.0, 0.5, 1.0):
        assert minimum_detectable(100, 1, p=p, within=0.0) == pytest.approx(0.0432, abs=1e-3)
        assert sign_flip([1.0] * 4)[0] / 2 > 0.05 >= sign_flip([1.0] * 5)[0] / 2


def test_no_gain_needs_no_number_of_rollouts() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        rollouts_needed(0, p=0.5)
