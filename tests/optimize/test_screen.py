import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit

from agentrft.optimize.design import Design, screening_design
from agentrft.optimize.planted import Planted, planted_knobs
from agentrft.optimize.screen import screened

KNOBS = planted_knobs(
    [
        Planted(knob="first"),
        *(Planted(knob="second", level=level) for level in "ab"),
        *(Planted(knob="third", level=level) for level in "abc"),
        *(Planted(knob=f"idle {n}") for n in range(3)),
    ]
)
SHIFTS = {("first", "on"): 1.0, ("second", "b"): -1.0, ("third", "a"): 0.5, ("third", "c"): 1.5}


def chances(design: Design, random: np.random.Generator, tasks: int) -> NDArray[np.float64]:
    """True pass rates as (configurations, tasks)."""
    shift = np.zeros(design.shape)
    for (knob, level), value in SHIFTS.items():
        k = [one.name for one in KNOBS].index(knob)
        n = [one.name for one in KNOBS[k].levels].index(level) + 1
        shift[design[:, k] == n, k] = value
    difficulty = logit(np.clip(random.beta(0.6, 0.6, size=tasks), 1e-6, 1 - 1e-6))
    return expit(shift.sum(axis=1)[:, None] + difficulty[None, :])


def test_intervals_hold_the_effect_about_as_often_as_they_say() -> None:
    design = screening_design([len(knob.levels) + 1 for knob in KNOBS], 24, seed=0)
    random = np.random.default_rng(0)
    # What an endless supply of tasks would show: the mean over difficulty of the additive fit.
    population = chances(design, random, 20_000).mean(axis=1, keepdims=True)
    truth = screened(design, KNOBS, population, population, ["all"]).effects
    held, seen = 0, 0
    for _ in range(150):
        chance = chances(design, random, 12)
        passes = (random.random(chance.shape) < chance).astype(float)
        tasks = [f"task {n}" for n in range(12)]
        effects = screened(design, KNOBS, passes, passes, tasks).effects
        for effect, true in zip(effects, truth, strict=True):
            held += effect.effect.low <= true.effect.value <= effect.effect.high
            seen += 1
    assert held / seen == pytest.approx(0.95, abs=0.015)


def test_the_best_combination_is_predicted_first_and_its_neighbours_follow() -> None:
    design = screening_design([len(knob.levels) + 1 for knob in KNOBS], 24, seed=0)
    random = np.random.default_rng(1)
    chance = chances(design, random, 400)
    passes = (random.random(chance.shape) < chance).astype(float)
    result = screened(design, KNOBS, passes, passes, [f"task {n}" for n in range(400)])
    best, *_ = result.candidates
    assert (best[0], best[2]) == (1, 3)
    assert best[1] != 2
    assert not result.by_score
    for other in result.candidates[2:]:
        assert sum(a != b for a, b in zip(best, other, strict=True)) == 1
    assert len(set(result.candidates)) == len(result.candidates)


def test_where_nothing_passes_the_mean_score_decides() -> None:
    design = screening_design([2, 2, 2], 8, seed=0)
    knobs = planted_knobs([Planted(knob=f"knob {n}") for n in range(3)])
    passes = np.zeros((len(design), 10))
    scores = np.repeat(np.where(design[:, [1]] == 1, 0.3, 0.2), 10, axis=1)
    result = screened(design, knobs, passes, scores, [f"task {n}" for n in range(10)])
    assert result.by_score
    assert result.candidates[0] == (0, 1, 0)
    assert result.effects[1].effect.value == pytest.approx(0.1)
    assert result.effects[1].effect.method.startswith("mean score")


def test_lost_rollouts_are_no_failures() -> None:
    design = screening_design([2, 2, 2], 8, seed=0)
    knobs = planted_knobs([Planted(knob=f"knob {n}") for n in range(3)])
    passes = np.repeat(design[:, [0]], 12, axis=1).astype(float)
    passes[design[:, 2] == 1, :4] = np.nan
    result = screened(design, knobs, passes, passes, [f"task {n}" for n in range(12)])
    first, _, third = (effect.effect.value for effect in result.effects)
    assert first == pytest.approx(1.0)
    assert third == pytest.approx(0.0, abs=1e-9)
    assert result.effects[2].rollouts == 4 * 8


def test_repeats_of_a_task_are_no_further_tasks() -> None:
    design = screening_design([2, 2], 4, seed=0)
    knobs = planted_knobs([Planted(knob="a"), Planted(knob="b")])
    random = np.random.default_rng(0)
    passes = (random.random((4, 10)) < 0.5).astype(float)
    tasks = [f"task {n}" for n in range(10)]
    once = screened(design, knobs, passes, passes, tasks)
    twice = screened(design, knobs, np.tile(passes, 2), np.tile(passes, 2), tasks * 2)
    for first, second in zip(once.effects, twice.effects, strict=True):
        assert first.effect == second.effect
