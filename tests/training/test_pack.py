"""Token trees hold every sample exactly, and micro-batches keep their budget."""

from dataclasses import replace
from operator import attrgetter

import pytest
import tiny_training
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.sample import Sample
from agentrft.training import pack as packing
from agentrft.training.credit import imitation
from agentrft.training.pack import Branch, MicroBatch, pack

COMMON = tuple(range(100, 140))


def _sample(ids: tuple[int, ...], actions: int, name: str = "") -> Sample:
    mask = [False] * (len(ids) - actions) + [True] * actions
    return imitation(ids, mask, name)


first = attrgetter("first")


def _visible(batch: MicroBatch, place: int) -> list[tuple[int, int]]:
    """Return position and token of everything the token at `place` attends to, itself included."""
    (own,) = (branch for branch in batch.branches if branch.first <= place < branch.last)
    above = [branch for branch in batch.branches if branch.last <= place < branch.end]
    seen = [p for branch in sorted(above, key=first) for p in range(branch.first, branch.last)]
    seen += range(own.first, place + 1)
    return [(int(batch.position_ids_T[p]), int(batch.token_ids_T[p])) for p in seen]


prefixes = st.sampled_from([(), COMMON, COMMON[:20], (*COMMON, *range(200, 230))])
tails = st.lists(st.integers(1, 3), min_size=2, max_size=25).map(tuple)
samples = st.lists(
    st.builds(lambda head, tail: _sample((*head, *tail), 1), prefixes, tails),
    min_size=1,
    max_size=7,
)


@given(samples, st.booleans(), st.integers(30, 400))
def test_every_action_token_is_predicted_from_exactly_its_own_past(
    made: list[Sample], share: bool, budget: int
) -> None:
    batches = list(pack(made, budget_tokens=budget, share=share))
    assert sorted(place for batch in batches for place in batch.order) == list(range(len(made)))
    for batch in batches:
        assert len(batch.order) == 1 or batch.computed_tokens <= budget
        assert batch.sample_tokens == sum(len(made[place].token_ids) for place in batch.order)
        for action, index in enumerate(batch.sample_A.tolist()):
            ids = made[batch.order[index]].token_ids
            prediction = int(batch.prediction_A[action])
            assert int(batch.target_M[prediction]) == ids[-1]
            past = list(enumerate(ids[:-1]))
            assert _visible(batch, int(batch.predictor_M[prediction])) == past


def test_what_all_share_is_computed_once_and_so_is_what_a_group_shares() -> None:
    group = (*COMMON, *range(200, 230))
    made = [
        _sample((*COMMON, 1, 2, 3), 1),
        _sample((*group, 5, 6), 1),
        _sample((*group, 7, 8), 1),
    ]
    (batch,) = pack(made, budget_tokens=1000)
    assert min(batch.branches, key=first) == Branch(0, len(COMMON), batch.computed_tokens)
    assert batch.computed_tokens == len(COMMON) + 3 + 30 + 2 + 2
    assert batch.sample_tokens == 43 + 72 + 72


def test_samples_that_share_are_packed_together() -> None:
    other = tuple(range(300, 340))
    made = [_sample((*head, n, n), 1) for n in range(1, 5) for head in (COMMON, other)]
    first, second = pack(made, budget_tokens=48)
    assert {first.order, second.order} == {(0, 2, 4, 6), (1, 3, 5, 7)}


def test_a_step_is_split_into_even_parts_for_its_lanes() -> None:
    made = [_sample((*COMMON, *[n] * 20), 1) for n in range(1, 9)]
    sizes = [batch.computed_tokens for batch in pack(made, budget_tokens=1000, parts=2)]
    assert sizes == [120, 120]
    assert len(list(pack(made[:1], budget_tokens=1000, parts=2))) == 1


def test_without_sharing_the_budget_counts_padding() -> None:
    made = [_sample(tuple(range(1, 1 + length)), 1) for length in (10, 10, 30)]
    batches = list(pack(made, budget_tokens=60, share=False))
    assert [len(batch.branches) for batch in batches] == [2, 1]


def test_identical_samples_cost_one() -> None:
    (batch,) = pack([_sample(COMMON, 5)] * 3, budget_tokens=1000)
    assert batch.computed_tokens == len(COMMON)
    assert (len(batch.target_M), len(batch.prediction_A)) == (5, 15)


def test_a_sample_beyond_the_budget_travels_alone() -> None:
    made = [_sample((9, 9, 9), 1), _sample(tuple(range(1, 200)), 1)]
    assert [len(batch.order) for batch in pack(made, budget_tokens=50)] == [1, 1]


def test_credit_stays_with_its_sample() -> None:
    made = [
        Sample(
            token_ids=(*COMMON, n, n + 1),
            action_mask=(*(False,) * len(COMMON), False, True),
            behavior_logprobs=(*(0.0,) * len(COMMON), 0.0, -float(n)),
            advantages=(*(0.0,) * len(COMMON), 0.0, float(n)),
            trajectory_id=str(n),
            temperature=0.5 + n,
        )
        for n in (3, 1, 2)
    ]
    (batch,) = pack(made, budget_tokens=1000)
    credited = [made[place].advantages[-1] for place in batch.order]
    torch.testing.assert_close(batch.advantages_A, torch.tensor(credited))
    torch.testing.assert_close(batch.behavior_logprobs_A, -batch.advantages_A)
    temperatures_A = batch.temperatures_M[batch.prediction_A]
    torch.testing.assert_close(temperatures_A, batch.advantages_A + 0.5)


def test_short_common_beginnings_are_not_worth_a_branch() -> None:
    assert packing.SMALLEST_SHARED_TOKENS == pytest.approx(16)
    made = [_sample((*COMMON[:15], n, n), 1) for n in (1, 2)]
    (batch,) = pack(made, budget_tokens=1000)
    assert batch.branches == (Branch(0, 17, 17), Branch(17, 34, 34))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [1, 90, 200])
def test_the_samples_of_a_pair_stay_together(share: bool, budget: int) -> None:
    made = [
        replace(sample, pair=f"pair {place // 2}")
        for place, sample in enumerate(tiny_training.samples(12, tasks=6, shared=30))
    ]
    batches = list(pack(made, budget_tokens=budget, share=share, parts=3))
    assert sorted(place for batch in batches for place in batch.order) == list(range(12))
    assert len(batches) > 1
    for batch in batches:
        names = [made[place].pair for place in batch.order]
        assert all(names.count(name) == 2 for name in names)
        numbers = batch.pair_N.tolist()
        assert [numbers.index(number) for number in numbers] == [names.index(n) for n in names]
