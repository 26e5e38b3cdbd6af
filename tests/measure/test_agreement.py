"""Agreement of graders, against known values and against what the words mean."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.measure.agreement import anchors, compare, repeats, weighted_kappa


def test_a_grader_that_repeats_itself_never_flips() -> None:
    measured = repeats({str(n): [n / 10] * 5 for n in range(10)}, pass_threshold=0.5)
    assert (measured.flips.value, measured.spread.value, measured.items) == (0.0, 0.0, 10)
    assert 0.2 < measured.flips.high < 0.4  # ten items prove no more than that


def test_a_coin_flips_half_of_the_time() -> None:
    draw = random.Random(1)
    scores = {str(n): [float(draw.random() < 0.5) for _ in range(5)] for n in range(400)}
    measured = repeats(scores, pass_threshold=0.5)
    assert measured.flips.value == pytest.approx(0.5, abs=0.03)
    assert measured.flips.low < 0.5 < measured.flips.high


def test_flips_are_about_passing_and_spread_about_scores() -> None:
    measured = repeats({"a": [0.6, 0.8], "b": [0.4, 0.6], "once": [0.1]}, pass_threshold=0.5)
    assert measured.items == 2
    assert measured.flips.value == 0.5
    assert measured.spread.value == pytest.approx(0.2 / 2**0.5)


def test_nothing_graded_twice_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="graded twice"):
        repeats({"a": [1.0]}, pass_threshold=0.5)


def test_anchors_are_compared_within_their_task() -> None:
    good = {"easy": [1.0, 0.9], "hard": [0.3], "alone": [0.0]}
    bad = {"easy": [0.5], "hard": [0.1, 0.3], "other": [1.0]}
    measured = anchors(good, bad)
    assert measured.tasks == 2
    assert measured.ordered.value == pytest.approx((1.0 + 0.75) / 2)
    assert (measured.lowest_good, measured.highest_bad) == (0.3, 0.5)
    assert not measured.separated
    assert anchors({"a": [0.8]}, {"a": [0.2]}).separated
    with pytest.raises(ValueError, match="both a good and a bad"):
        anchors({"a": [1.0]}, {"b": [0.0]})


def test_weighted_kappa_is_that_of_the_textbook() -> None:
    # Cohen's table of weighted kappa, worked out by hand with quadratic weights (0, 1, 4).
    table = np.array([[10, 3, 1], [2, 8, 4], [1, 2, 9]])
    first = [i for i in range(3) for j in range(3) for _ in range(table[i, j])]
    second = [j for i in range(3) for j in range(3) for _ in range(table[i, j])]
    weights = np.array([[(i - j) ** 2 for j in range(3)] for i in range(3)])
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    by_hand = 1 - (weights * table).sum() / (weights * expected).sum()
    assert weighted_kappa(first, second) == pytest.approx(by_hand)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30))
def test_kappa_is_one_with_oneself_and_below_with_noise(scores: list[int]) -> None:
    own = weighted_kappa(scores, scores)
    assert own is None if len(set(scores)) == 1 else own == 1.0
    other = weighted_kappa(scores, [4 - score for score in scores])
    assert other is None or other <= 1.0


def test_two_graders_that_rank_alike_but_score_apart() -> None:
    first = {str(n): n / 20 for n in range(20)}
    second = {str(n): n / 20 + 0.3 for n in range(30)}
    measured = compare(first, second, pass_threshold=0.5)
    assert measured.items == 20
    assert measured.within.value == 0.0
    assert measured.same_side.value == pytest.approx(14 / 20)
    assert measured.spearman is not None
    assert measured.spearman.value == pytest.approx(1.0)
    assert measured.kappa is not None
    assert measured.kappa.value < 0.7
    assert measured.difference.value == pytest.approx(0.3)
    assert measured.difference.p_value < 0.01


def test_a_difference_of_just_the_tolerance_agrees() -> None:
    measured = compare({"a": 0.7, "b": 0.0}, {"a": 0.8, "b": 0.2}, pass_threshold=0.5)
    assert measured.within.value == 0.5


def test_intervals_hold_the_value_and_shrink_with_items() -> None:
    draw = np.random.default_rng(3)

    def measured(count: int) -> tuple[float, float]:
        truth = draw.random(count)
        first = {str(n): float(truth[n]) for n in range(count)}
        second = {str(n): float(truth[n] + draw.normal(0, 0.2)) for n in range(count)}
        found = compare(first, second, pass_threshold=0.5).spearman
        assert found is not None
        assert found.low < found.value < found.high
        return found.low, found.high

    few, many = measured(20), measured(300)
    assert many[1] - many[0] < few[1] - few[0]


def test_a_grader_without_spread_has_no_correlation() -> None:
    measured = compare({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 1.0}, pass_threshold=0.5)
    assert measured.spearman is None
    with pytest.raises(ValueError, match="no item in common"):
        compare({"a": 1.0}, {"b": 1.0}, pass_threshold=0.5)
