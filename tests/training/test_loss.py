"""Losses and their metrics on numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch

from agentrft.core.training_config import Loss
from agentrft.training.loss import LossTerms, cross_entropy, policy_gradient


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
        settings=Loss(**{"tokens_per_sequence": 1.0, **changes}),
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
