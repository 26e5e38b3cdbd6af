import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agentrft.measure.statistics import (
    DRAWS,
    EXACT_CLUSTERS,
    holm,
    mcnemar,
    mean,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    rate,
    sign_flip,
    wilson,
)

PASSED = st.lists(st.lists(st.booleans(), min_size=3, max_size=6), min_size=1, max_size=5)


def tasks(values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    return {f"t{i}": list(of_task) for i, of_task in enumerate(values)}


def outcomes(values: Sequence[Sequence[bool]]) -> dict[str, list[bool]]:
    return {f"t{i}": list(of_task) for i, of_task in enumerate(values)}


def test_pass_at_k_and_pass_hat_k_by_hand() -> None:
    # 1 of 4 passes: of the 6 pairs, 3 hold the pass and none holds two.
    # 3 of 4 pass: no pair misses, 3 of 6 pairs are both passes.
    passed = outcomes([[True, False, False, False], [True, True, True, False]])
    assert pass_at_k(passed, 1) == pytest.approx(0.5)
    assert pass_at_k(passed, 2) == pytest.approx((0.5 + 1.0) / 2)
    assert pass_hat_k(passed, 2) == pytest.approx((0.0 + 0.5) / 2)
    assert pass_hat_k(passed, 1) == pass_at_k(passed, 1)


@given(PASSED, st.integers(1, 3))
def test_pass_estimates_equal_the_average_over_every_choice_of_k(
    values: list[list[bool]], k: int
) -> None:
    chosen = [list(itertools.combinations(of_task, k)) for of_task in values]
    any_of = np.mean([np.mean([any(c) for c in of_task]) for of_task in chosen])
    all_of = np.mean([np.mean([all(c) for c in of_task]) for of_task in chosen])
    assert pass_at_k(outcomes(values), k) == pytest.approx(any_of)
    assert pass_hat_k(outcomes(values), k) == pytest.approx(all_of)


def test_more_draws_than_rollouts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"k=3 needs .* \['t1'\] have fewer"):
        pass_at_k(outcomes([[True] * 3, [True] * 2]), 3)
    with pytest.raises(ValueError, match="k=1"):
        pass_hat_k({}, 1)


@given(st.integers(0, 40), st.integers(1, 40), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(passes: int, more: int, level: float) -> None:
    total = passes + more
    reference = stats.binomtest(passes, total).proportion_ci(level, method="wilson")
    assert wilson(passes / total, total, level=level) == pytest.approx(
        (reference.low, reference.high), abs=1e-9
    )


def test_with_one_rollout_per_task_the_interval_is_plain_wilson() -> None:
    estimate = rate(outcomes([[i < 37] for i in range(200)]))
    reference = stats.binomtest(37, 200).proportion_ci(method="wilson")
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (0.185, reference.low, reference.high)
    )


def test_repeats_that_agree_are_not_new_tasks() -> None:
    once = rate(outcomes([[i < 30] for i in range(50)]))
    copied = rate(outcomes([[i < 30] * 8 for i in range(50)]))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_repeats_that_vary_within_tasks_narrow_the_interval_down_to_all_rollouts() -> None:
    once = rate(outcomes([[i % 2 == 0] for i in range(50)]))
    varied = rate(outcomes([[True, False]] * 50))
    assert varied.high - varied.low < once.high - once.low
    assert (varied.low, varied.high) == pytest.approx(wilson(0.5, 100))


@pytest.mark.parametrize("value", [True, False])
def test_an_interval_never_collapses(*, value: bool) -> None:
    estimate = rate(outcomes([[value] * 4] * 20))
    assert estimate.value == float(value)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(float(value), 20))
    assert estimate.high - estimate.low > 0.1


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_rate_intervals_cover_what_they_promise(repeats: int, chance: float) -> None:
    random = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        of_task = random.beta(2 * chance, 2 * (1 - chance), size=(60, 1))
        passed = random.random((60, repeats)) < of_task
        estimate = rate(outcomes(passed.tolist()))
        hits += estimate.low <= chance <= estimate.high
    # 400 trials at 95% stay within 0.92 to 0.98 but for one time in 200.
    assert 0.92 <= hits / 400 <= 0.98


def test_paired_intervals_cover_and_the_test_keeps_its_level() -> None:
    random = np.random.default_rng(3)
    covered = rejected = 0
    for _ in range(200):
        chance = random.random((60, 1))
        first, second = (random.random((60, 3)) < chance for _ in range(2))
        found = paired_difference(
            tasks(first.astype(float).tolist()), tasks(second.astype(float).tolist())
        )
        covered += found.low <= 0 <= found.high
        rejected += found.p_value <= 0.05
    assert 0.90 <= covered / 200 <= 0.99
    assert rejected / 200 <= 0.09


def test_a_mean_averages_tasks_not_rollouts() -> None:
    estimate = mean(tasks([[1.0, 1.0, 1.0, 1.0], [0.0]]))
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def test_a_mean_interval_agrees_with_scipys_bootstrap() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 80)
    estimate = mean(tasks([[value] for value in values]))
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high), abs=0.02)


def test_nothing_measured_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="no task has a graded rollout"):
        mean({})
    with pytest.raises(ValueError, match="share no task"):
        paired_difference({"a": [1.0]}, {"b": [1.0]})


def test_a_paired_difference_by_hand() -> None:
    first = {"a": [0.0, 1.0], "b": [0.0], "c": [1.0], "only first": [1.0]}
    second = {"a": [1.0, 1.0], "b": [1.0], "c": [1.0], "only second": [0.0], "none": []}
    found = paired_difference(first, second)
    # Differences 0.5, 1, 0: both sign patterns of one direction of four, c cannot flip.
    assert found.value == pytest.approx(0.5)
    assert (found.tasks, found.clusters, found.wins, found.losses) == (3, 3, 2, 0)
    assert (found.p_value, found.test) == (0.5, "exact sign-flip")


def test_one_binary_rollout_per_task_is_mcnemar() -> None:
    first = tasks([[0.0]] * 10 + [[1.0]] * 3 + [[1.0]] * 20)
    second = tasks([[1.0]] * 10 + [[0.0]] * 3 + [[1.0]] * 20)
    found = paired_difference(first, second)
    assert found.test == "exact McNemar"
    assert found.p_value == pytest.approx(stats.binomtest(3, 13).pvalue)
    assert (found.wins, found.losses) == (10, 3)
    # With so few discordant tasks the sign-flip test is the same test.
    assert sign_flip([1.0] * 10 + [-1.0] * 3)[0] == pytest.approx(found.p_value)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_agrees_with_the_binomial_test(wins: int, losses: int) -> None:
    reference = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(reference)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_the_exact_sign_flip_visits_every_pattern(values: list[int]) -> None:
    moved = [value for value in values if value]
    patterns = list(itertools.product((-1, 1), repeat=len(moved)))
    sums = [abs(sum(s * v for s, v in zip(p, moved, strict=True))) for p in patterns]
    expected = sum(s >= abs(sum(moved)) for s in sums) / len(sums)
    assert sign_flip(values)[0] == pytest.approx(expected)


def test_many_clusters_are_drawn_with_a_seed_and_never_give_zero() -> None:
    values = [0.25] * (EXACT_CLUSTERS + 10)
    p_value, test = sign_flip(values)
    assert test == "sampled sign-flip"
    assert p_value == sign_flip(values)[0]
    assert 0 < p_value < 0.001


def test_the_sampled_test_agrees_with_scipys() -> None:
    values = np.random.default_rng(5).normal(0.25, 1.0, 40)
    reference = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        n_resamples=DRAWS,
        rng=np.random.default_rng(1),
    )
    assert sign_flip(values.tolist())[0] == pytest.approx(reference.pvalue, abs=0.02)


def test_clusters_flip_together() -> None:
    first, second = tasks([[0.0]] * 12), tasks([[1.0]] * 12)
    whole = {f"t{i}": "ab"[i % 2] for i in range(12)}
    found = paired_difference(first, second, clusters=whole)
    assert (found.clusters, found.p_value, found.test) == (2, 0.5, "exact sign-flip")
    assert paired_difference(first, second).p_value == pytest.approx(2 / 2**12)


def test_clusters_of_unequal_size_weigh_by_their_tasks() -> None:
    first = tasks([[0.0]] * 4)
    second = tasks([[1.0]] * 3 + [[0.0]])
    found = paired_difference(first, second, clusters={"t0": "x", "t1": "x", "t2": "x", "t3": "y"})
    assert found.value == pytest.approx(0.75)
    assert (found.low, found.high) == (0.0, 1.0)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.04: times 3, 2, 1 and never falling.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx((0.04, 0.03, 0.04))
    assert holm([0.6, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_only_raises_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(a >= p and a <= 1 for a, p in zip(adjusted, p_values, strict=True))
    for i, j in itertools.combinations(range(len(p_values)), 2):
        if p_values[i] < p_values[j]:
            assert adjusted[i] <= adjusted[j]


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_swapping_the_policies_swaps_the_sign(pairs: list[tuple[float, float]], seed: int) -> None:
    first, second = tasks([[a] for a, _ in pairs]), tasks([[b] for _, b in pairs])
    there = paired_difference(first, second, seed=seed)
    back = paired_difference(second, first, seed=seed)
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)
    assert there.p_value == pytest.approx(back.p_value)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.low <= there.value + 1e-9
    assert there.value <= there.high + 1e-9
    assert math.isfinite(there.p_value)
