import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrft.optimize.design import imbalance, screening_design


@given(
    st.lists(st.integers(2, 4), min_size=1, max_size=8),
    st.integers(8, 32),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_every_design_is_balanced_has_the_baseline_on_top_and_can_be_fitted(
    levels: list[int], configurations: int, seed: int
) -> None:
    design = screening_design(levels, configurations, seed=seed)
    assert not design[0].any()
    coded = [np.eye(n)[column] for n, column in zip(levels, design.T, strict=True)]
    for one in coded:
        counts = one.sum(axis=0)
        assert counts.max() - counts.min() <= 1
    main = np.column_stack([np.ones(len(design)), *(one[:, 1:] for one in coded)])
    assert np.linalg.matrix_rank(main) == main.shape[1]


def test_two_levels_in_a_multiple_of_four_rows_are_nearly_orthogonal() -> None:
    design = screening_design([2] * 8, 24, seed=0)
    for first, second in itertools.combinations(design.T, 2):
        counts = np.bincount(2 * first + second, minlength=4)
        assert counts.max() - counts.min() <= 2


def test_the_exchange_beats_chance() -> None:
    levels = [2, 3, 4, 2, 3, 4, 2, 2]
    random = np.random.default_rng(0)
    by_chance = [
        imbalance(np.column_stack([random.permutation(np.arange(24) % n) for n in levels]))
        for _ in range(50)
    ]
    assert imbalance(screening_design(levels, 24, seed=0)) < 0.5 * min(by_chance)


def test_few_knobs_are_tried_in_every_combination() -> None:
    design = screening_design([2, 3], 24, seed=0)
    assert sorted(map(tuple, design.tolist())) == list(itertools.product(range(2), range(3)))


def test_a_seed_names_its_design() -> None:
    levels = [3] * 6
    first, again, other = (screening_design(levels, 24, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_knob_without_a_level_is_refused() -> None:
    with pytest.raises(ValueError, match="beside the baseline's"):
        screening_design([2, 1], 24, seed=0)
