"""Losses over per-token credit. They know no algorithm: whoever made the advantages chose it.

Shapes: A action tokens of a micro-batch, N its samples. A loss is a sum divided by a constant of the
whole step, so that micro-batches add up to the step whatever their sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """One micro-batch's share of the step."""

    loss: Tensor
    """Scalar that carries the gradient."""
    sums: Mapping[str, float]
    """Sums over action tokens or samples; the trainer adds them up and divides."""


def policy_gradient(
    policy_logprobs_A: Tensor,
    behavior_logprobs_A: Tensor,
    advantages_A: Tensor,
    sample_A: Tensor,
    *,
    samples: int,
    clip_low: float,
    clip_high: float,
    sequence_log_ratio_bound: float,
    normaliser: float,
) -> LossTerms:
    """Return -sum(min(ratio * A, clip(ratio) * A)) / normaliser over samples near their sampler.

    The ratio is to behaviour logprobs, clipped to [1 - clip_low, 1 + clip_high] (PPO, arXiv
    1707.06347; asymmetric as in DAPO, arXiv 2503.14476). A sample whose mean absolute log-ratio
    exceeds the bound gives no gradient. `normaliser` is tokens per sequence times sequences of the
    whole step (Dr. GRPO, arXiv 2503.20783). KL to the sampler is Schulman's k3 estimate.
    """
    log_ratio_A = policy_logprobs_A - behavior_logprobs_A
    with torch.no_grad():
        kept_N = _mean_per_sample(log_ratio_A.abs(), sample_A, samples) <= sequence_log_ratio_bound
        kept_A = kept_N[sample_A]
    # Zeroing the log-ratio of masked samples before exp keeps an overflow out of the gradient.
    ratio_A = torch.where(kept_A, log_ratio_A, 0.0).exp()
    clipped_A = ratio_A.clamp(1.0 - clip_low, 1.0 + clip_high)
    objective_A = torch.minimum(ratio_A * advantages_A, clipped_A * advantages_A)
    loss = -torch.where(kept_A, objective_A, 0.0).sum() / normaliser
    with torch.no_grad():
        low_A = kept_A & (ratio_A < 1.0 - clip_low) & (advantages_A < 0)
        high_A = kept_A & (ratio_A > 1.0 + clip_high) & (advantages_A > 0)
        # A hopeless sample's ratio may overflow; its k3 then says "more than e**20".
        bounded_A = log_ratio_A.clamp(-20.0, 20.0)
        sums = {
            "clipped_low": float(low_A.sum()),
            "clipped_high": float(high_A.sum()),
            "kl_to_sampler": float((bounded_A.exp() - 1.0 - bounded_A).sum()),
            "logprob_difference": float(log_ratio_A.abs().sum()),
            "masked_sequences": float((~kept_N).sum()),
        }
    return LossTerms(loss=loss, sums=sums)


def cross_entropy(
    policy_logprobs_A: Tensor, advantages_A: Tensor, *, normaliser: float
) -> LossTerms:
    """Return -sum(weight * logprob) / normaliser; the advantage is the weight.

    `normaliser` is the total weight of the whole step's action tokens.
    """
    loss = -(advantages_A * policy_logprobs_A).sum() / normaliser
    return LossTerms(loss=loss, sums={})


def _mean_per_sample(values_A: Tensor, sample_A: Tensor, samples: int) -> Tensor:
    zeros_N = torch.zeros(samples, dtype=values_A.dtype, device=values_A.device)
    sums_N = zeros_N.index_add(0, sample_A, values_A)
    counts_N = zeros_N.index_add(0, sample_A, torch.ones_like(values_A))
    return sums_N / counts_N.clamp(min=1.0)
