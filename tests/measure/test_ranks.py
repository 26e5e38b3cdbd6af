import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agentrft.measure.ranks import group_change, kendall_tau_b, ranks, spearman

scores = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=16)),
    min_size=3,
    max_size=60,
)


@given(scores)
def test_both_correlations_agree_with_scipy(pairs: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if len(set(first)) == 1 or len({round(b, 9) for b in second}) == 1:
        assert kendall_tau_b(first, second) is None
        assert spearman(first, second) is None
        return
    rounded = np.round(second, 9)
    assert kendall_tau_b(first, second) == pytest.approx(stats.kendalltau(first, rounded)[0])
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, rounded)[0])


def test_equal_scores_share_a_rank_even_if_the_last_digit_differs() -> None:
    assert ranks([0.3, 0.1 + 0.2, 0.0]).tolist() == [2.5, 2.5, 1.0]


def test_a_score_that_is_only_rescaled_changes_nothing_for_the_gradient() -> None:
    old = [0.0, 0.5, 1.0, 0.2, 0.2, 0.9]
    change = group_change([1, 1, 1, 2, 2, 2], old, [3 * score - 7 for score in old])
    assert (change.groups, change.reordered, change.sign_flips) == (2, 0, 0)
    assert change.tau_b == pytest.approx(1)
    assert change.spearman == pytest.approx(1)


def test_a_reversed_score_flips_every_advantage_that_is_not_zero() -> None:
    change = group_change([1, 1, 1], [0.0, 0.5, 1.0], [1.0, 0.5, 0.0])
    assert (change.reordered, change.sign_flips, change.members) == (1, 2, 3)
    assert change.tau_b == pytest.approx(-1)


def test_ranks_between_groups_do_not_count_inside_them() -> None:
    """The second score swaps the two tasks and leaves each one's order alone."""
    old, new = [0.0, 0.1, 0.8, 0.9], [0.8, 0.9, 0.0, 0.1]
    assert (kendall_tau_b(old, new) or 0) < 0
    assert group_change([1, 1, 2, 2], old, new).tau_b == pytest.approx(1)


def test_a_score_without_spread_leaves_nothing_to_learn() -> None:
    change = group_change([1, 1, 2, 2], [0.0, 1.0, 1.0, 1.0], [0.3, 0.3, 0.3, 0.3])
    assert (change.spread_before, change.spread_after) == (1, 0)
    assert change.tau_b is None
    assert change.spearman is None


def test_a_group_of_one_carries_no_gradient() -> None:
    change = group_change([1, 2, 3], [0.0, 1.0, 0.5], [1.0, 0.0, 0.5])
    assert (change.groups, change.members, change.tau_b) == (0, 0, None)


def test_a_mean_that_is_not_exact_is_no_sign() -> None:
    assert group_change([1, 1, 1], [0.1, 0.1, 0.1], [0.0, 0.5, 1.0]).sign_flips == 0
