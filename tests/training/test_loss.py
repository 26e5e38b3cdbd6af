"""Losses and their metrics on numbers worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.training_config import Loss
from agentrft.training.loss import LossTerms, cross_entropy, k3, policy_gradient, preference


def _policy_gradient(
    ratios: list[float], advantages: list[float], sample: list[int] | None = None, **changes: Any
) -> tuple[LossTerms, list[float]]:
    """Return the terms, and the gradient of the loss in each policy logprob."""
    behavior_A = torch.full((len(ratios),), -2.0)
    policy_A = (behavior_A + torch.tensor(ratios).log()).requires_grad_()
    sample = sample or [0] * len(ratios)
    terms = policy_gradient(
        policy_A,
        behavior_A,
        None,
        torch.tensor(advantages),
        torch.tensor(sample),
        samples=max(sample) + 1,
        settings=replace(Loss(tokens_per_sequence=1.0), **changes),
        normaliser=1.0,
    )
    terms.loss.backward()
    assert policy_A.grad is not None
    return terms, policy_A.grad.tolist()


def test_on_policy_the_gradient_is_minus_the_advantage_over_the_normaliser() -> None:
    terms, gradient = _policy_gradient([1.0, 1.0], [0.5, -0.25], tokens_per_sequence=8.0)
    assert terms.loss.item() == pytest.approx(-0.25 / 8)
    assert gradient == pytest.approx([-0.5 / 8, 0.25 / 8])


def test_the_ratio_scales_the_gradient_inside_the_clip() -> None:
    _, gradient = _policy_gradient([1.1, 0.9], [1.0, 1.0])
    assert gradient == pytest.approx([-1.1, -0.9])


def test_what_already_moved_far_enough_is_clipped_asymmetrically_and_counted() -> None:
    terms, gradient = _policy_gradient(
        [1.27, 1.29, 0.81, 0.79, 1.4, 0.5], [1.0, 1.0, -1.0, -1.0, -1.0, 1.0]
    )
    # Pessimistic minimum: moving back toward the sampler is never clipped.
    assert gradient == pytest.approx([-1.27, 0.0, 0.81, 0.0, 1.4, -0.5])
    expected = -(1.27 + 1.28 - 0.81 - 0.8 - 1.4 + 0.5)
    assert terms.loss.item() == pytest.approx(expected, abs=1e-5)
    assert (terms.sums["clipped_high"], terms.sums["clipped_low"]) == (1.0, 1.0)


def test_a_sample_far_from_its_sampler_is_masked_whole_and_counted() -> None:
    far = math.exp(2.1)
    terms, gradient = _policy_gradient(
        [far, 1 / far, 1.0], [-1.0, 1.0, 1.0], [0, 0, 1], sequence_log_ratio_bound=2.0
    )
    assert gradient == pytest.approx([0.0, 0.0, -1.0])
    assert terms.sums["masked_sequences"] == 1.0
    assert terms.sums["clipped_low"] == terms.sums["clipped_high"] == 0.0


def test_one_odd_token_does_not_mask_a_sample_whose_mean_is_near() -> None:
    terms, gradient = _policy_gradient([math.exp(3.0), 1.0], [-1.0, 1.0])
    assert terms.sums["masked_sequences"] == 0.0
    assert gradient[0] == pytest.approx(math.exp(3.0), rel=1e-5)


def test_a_hopeless_sample_leaves_no_infinity_behind() -> None:
    behavior_A = torch.tensor([-300.0, -2.0])
    policy_A = torch.tensor([-1.0, -2.0], requires_grad=True)
    terms = policy_gradient(
        policy_A,
        behavior_A,
        None,
        torch.tensor([-1.0, 1.0]),
        torch.tensor([0, 1]),
        samples=2,
        settings=Loss(tokens_per_sequence=1.0),
        normaliser=1.0,
    )
    terms.loss.backward()
    assert policy_A.grad is not None
    assert policy_A.grad.tolist() == [0.0, -1.0]
    assert all(math.isfinite(value) for value in terms.sums.values())


def test_kl_to_the_sampler_is_the_k3_estimate() -> None:
    terms, _ = _policy_gradient([1.5, 0.5], [0.0, 0.0])
    expected = (1.5 - 1 - math.log(1.5)) + (0.5 - 1 - math.log(0.5))
    assert terms.sums["kl_to_sampler"] == pytest.approx(expected, rel=1e-5)
    assert terms.sums["logprob_difference"] == pytest.approx(math.log(1.5) + math.log(2), rel=1e-5)


def test_cross_entropy_weighs_each_token_by_its_advantage() -> None:
    logprobs_A = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    terms = cross_entropy(logprobs_A, torch.tensor([1.0, 2.0, 0.0]), normaliser=3.0)
    terms.loss.backward()
    assert logprobs_A.grad is not None
    assert terms.loss.item() == pytest.approx(5.0 / 3.0)
    assert logprobs_A.grad.tolist() == pytest.approx([-1 / 3, -2 / 3, 0.0])


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=6))
def test_on_policy_cispo_and_clip_are_both_reinforce(advantages: list[float]) -> None:
    ratios = [1.0] * len(advantages)
    _, clipped = _policy_gradient(ratios, advantages)
    _, weighted = _policy_gradient(ratios, advantages, kind="cispo")
    expected = [-advantage for advantage in advantages]
    assert clipped == pytest.approx(expected, abs=1e-6)
    assert weighted == pytest.approx(expected, abs=1e-6)


def test_cispo_cuts_a_weight_where_clip_cuts_the_gradient() -> None:
    ratios, advantages = [9.0, 0.5, 1.5], [1.0, -1.0, 1.0]
    terms, gradient = _policy_gradient(ratios, advantages, kind="cispo")
    assert gradient == pytest.approx([-5.0, 0.5, -1.5])
    assert (terms.sums["clipped_low"], terms.sums["clipped_high"]) == (0.0, 1.0)
    _, clipped = _policy_gradient(ratios, advantages)
    assert clipped == pytest.approx([0.0, 0.0, 0.0])


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=6), st.sampled_from([-1.0, 1.0]))
def test_gspo_knows_one_ratio_per_sequence(ratios: list[float], advantage: float) -> None:
    one = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    terms, gradient = _policy_gradient(
        ratios, [advantage] * len(ratios), kind="gspo", clip_low=0.9, clip_high=9.0
    )
    assert terms.loss.item() == pytest.approx(-one * advantage, rel=1e-4)
    assert gradient == pytest.approx([-one * advantage / len(ratios)] * len(ratios), rel=1e-4)


def test_gspo_clips_whole_sequences_and_counts_their_tokens() -> None:
    terms, gradient = _policy_gradient(
        [1.1, 1.0, 1.0], [1.0, 1.0, 1.0], [0, 0, 1], kind="gspo", clip_high=0.01
    )
    assert gradient == pytest.approx([0.0, 0.0, -1.0])
    assert terms.sums["clipped_high"] == 2.0


@given(st.floats(-5, 5))
def test_the_divergence_estimate_is_never_negative(log_ratio: float) -> None:
    assert k3(torch.tensor(log_ratio, dtype=torch.float64)).item() >= -1e-12
    assert k3(torch.tensor(0.0)).item() == 0.0


def _preference(log_ratios: list[float], **changes: Any) -> tuple[LossTerms, list[float]]:
    """Two pairs of samples with two tokens each, the preferred ones first and last."""
    reference_A = torch.full((8,), -2.0)
    policy_A = (reference_A + torch.tensor(log_ratios)).requires_grad_()
    settings: dict[str, Any] = dict(
        beta=0.5, length_normalised=False, imitation=0.0, normaliser=2.0
    )
    terms = preference(
        policy_A,
        reference_A,
        torch.tensor([1.0, 1, -1, -1, -1, -1, 1, 1]),
        torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]),
        torch.tensor([0, 0, 1, 1]),
        **(settings | changes),
    )
    terms.loss.backward()
    assert policy_A.grad is not None
    return terms, policy_A.grad.tolist()


def test_at_the_reference_a_pair_costs_log_two_and_pulls_both_ways_alike() -> None:
    terms, gradient = _preference([0.0] * 8)
    assert terms.loss.item() == pytest.approx(math.log(2))
    assert gradient == pytest.approx([-0.125, -0.125, 0.125, 0.125, 0.125, 0.125, -0.125, -0.125])
    assert (terms.sums["accuracy"], terms.sums["margin"]) == (0.0, 0.0)


@given(st.lists(st.floats(-2, 2), min_size=8, max_size=8))
def test_the_gradient_of_a_pair_sums_to_zero_and_shrinks_with_its_margin(
    log_ratios: list[float],
) -> None:
    terms, gradient = _preference(log_ratios)
    margins = [
        0.5 * (sum(log_ratios[0:2]) - sum(log_ratios[2:4])),
        0.5 * (sum(log_ratios[6:8]) - sum(log_ratios[4:6])),
    ]
    assert terms.sums["margin"] == pytest.approx(sum(margins), abs=1e-4)
    for tokens, margin in ((gradient[:4], margins[0]), (gradient[4:], margins[1])):
        assert sum(tokens) == pytest.approx(0.0, abs=1e-6)
        pull = 0.5 / (1 + math.exp(margin)) / 2
        assert sorted(tokens) == pytest.approx([-pull, -pull, pull, pull], abs=1e-5)


def test_rewards_accuracy_and_length_normalisation_are_told() -> None:
    log_ratios = [0.4, 0.2, -0.2, -0.2, 1.0, 0.0, 0.5, 0.1]
    sums = _preference(log_ratios)[0].sums
    assert sums["preferred_reward"] == pytest.approx(0.5 * (0.6 + 0.6))
    assert sums["rejected_reward"] == pytest.approx(0.5 * (-0.4 + 1.0))
    assert sums["accuracy"] == 1.0
    normalised = _preference(log_ratios, length_normalised=True)[0].sums
    assert normalised["margin"] == pytest.approx(sums["margin"] / 2)


def test_imitation_pulls_only_what_is_preferred() -> None:
    without, alone = _preference([0.0] * 8)[1], _preference([0.0] * 8, imitation=0.3)[1]
    added = [one - other for one, other in zip(alone, without, strict=True)]
    assert added == pytest.approx([-0.075, -0.075, 0, 0, 0, 0, -0.075, -0.075])


def test_a_rejected_answer_that_became_impossible_leaves_the_distance_readable() -> None:
    sums = _preference([0.0, 0.0, -15.0, -15.0, 0.0, 0.0, 0.0, 0.0])[0].sums
    assert sums["kl_to_reference"] == pytest.approx(28.0, abs=0.01)
