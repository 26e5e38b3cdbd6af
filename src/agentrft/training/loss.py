"""Losses over per-token credit. They know no algorithm: whoever made the advantages chose it.

Shapes: A action tokens of a micro-batch, N its samples, P its pairs. A loss is a sum divided by a
constant of the whole step, so that micro-batches add up to the step whatever their sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agentrft.core.training_config import Loss

FARTHEST = 20.0
"""Log-ratios count up to here, in nats; a hopeless token's estimate then says "more than e**20"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """One micro-batch's share of the step."""

    loss: Tensor
    """Scalar that carries the gradient."""
    sums: Mapping[str, float]
    """Sums over action tokens, samples or pairs; the trainer adds them up and divides."""


def policy_gradient(
    policy_logprobs_A: Tensor,
    behavior_logprobs_A: Tensor,
    reference_logprobs_A: Tensor | None,
    advantages_A: Tensor,
    sample_A: Tensor,
    *,
    samples: int,
    settings: Loss,
    normaliser: float,
) -> LossTerms:
    """Return -sum(weight * (objective - kl_coefficient * KL)) / normaliser over action tokens.

    Ratios are to behaviour logprobs. A sample whose mean absolute log-ratio exceeds the bound gives
    no gradient. A token's weight is 1 / `tokens_per_sequence` (Dr. GRPO, arXiv 2503.20783), for
    `gspo` 1 / its sample's action tokens; `normaliser` is the samples of the whole step. KL to the
    sampler and to the reference is Schulman's k3 estimate; that to the reference carries a gradient.
    """
    low, high = settings.bounds
    log_ratio_A = policy_logprobs_A - behavior_logprobs_A
    length_N = _per_sample(torch.ones_like(log_ratio_A), sample_A, samples).clamp(min=1.0)
    with torch.no_grad():
        distance_N = _per_sample(log_ratio_A.abs(), sample_A, samples) / length_N
        kept_N = distance_N <= settings.sequence_log_ratio_bound
        kept_A = kept_N[sample_A]
    # Zeroing the log-ratio of masked samples before exp keeps an overflow out of the gradient.
    near_A = torch.where(kept_A, log_ratio_A, 0.0)
    weight_A = torch.full_like(near_A, 1.0 / settings.tokens_per_sequence)
    match settings.kind:
        case "clip":
            ratio_A = near_A.exp()
            objective_A = clip(ratio_A, advantages_A, low, high)
        case "cispo":
            ratio_A = near_A.exp()
            objective_A = cispo(ratio_A, policy_logprobs_A, advantages_A, low, high)
        case "gspo":
            ratio_A = (_per_sample(near_A, sample_A, samples) / length_N).exp()[sample_A]
            objective_A = clip(ratio_A, advantages_A, low, high)
            weight_A = 1.0 / length_N[sample_A]
    sums: dict[str, float] = {}
    if reference_logprobs_A is not None:
        divergence_A = k3(reference_logprobs_A - policy_logprobs_A)
        objective_A = objective_A - settings.kl_coefficient * divergence_A
        sums["kl_to_reference"] = float(divergence_A.detach().sum())
    loss = -torch.where(kept_A, weight_A * objective_A, 0.0).sum() / normaliser
    with torch.no_grad():
        # A clipped token is one without gradient; cispo keeps it, and its weight is what is cut.
        always = settings.kind == "cispo"
        low_A = kept_A & (ratio_A < low) & ((advantages_A < 0) | always)
        high_A = kept_A & (ratio_A > high) & ((advantages_A > 0) | always)
        sums |= {
            "clipped_low": float(low_A.sum()),
            "clipped_high": float(high_A.sum()),
            "kl_to_sampler": float(k3(log_ratio_A).sum()),
            "logprob_difference": float(log_ratio_A.abs().sum()),
            "masked_sequences": float((~kept_N).sum()),
        }
    return LossTerms(loss=loss, sums=sums)


def clip(ratio_A: Tensor, advantages_A: Tensor, low: float, high: float) -> Tensor:
    """Return the lesser of ratio and clipped ratio, times A (PPO, arXiv 1707.06347).

    Asymmetric bounds are DAPO's (2503.14476). With one ratio per sequence, the exponential of its
    mean log-ratio, this is GSPO (2507.18071).
    """
    return torch.minimum(ratio_A * advantages_A, ratio_A.clamp(low, high) * advantages_A)


def cispo(
    ratio_A: Tensor, policy_logprobs_A: Tensor, advantages_A: Tensor, low: float, high: float
) -> Tensor:
    """Return the clipped ratio, as a constant, times A * log-probability (MiniMax-M1, 2506.13585)."""
    return ratio_A.detach().clamp(low, high) * advantages_A * policy_logprobs_A


def k3(log_ratio_A: Tensor) -> Tensor:
    """Return exp(x) - 1 - x: the KL divergence in expectation over x = log(other / sampled from)."""
    bounded_A = log_ratio_A.clamp(-FARTHEST, FARTHEST)
    return torch.expm1(bounded_A) - bounded_A


def cross_entropy(
    policy_logprobs_A: Tensor, advantages_A: Tensor, *, normaliser: float
) -> LossTerms:
    """Return -sum(weight * logprob) / normaliser; the advantage is the weight.

    `normaliser` is the total weight of the whole step's action tokens.
    """
    loss = -(advantages_A * policy_logprobs_A).sum() / normaliser
    return LossTerms(loss=loss, sums={})


def preference(
    policy_logprobs_A: Tensor,
    reference_logprobs_A: Tensor,
    advantages_A: Tensor,
    sample_A: Tensor,
    pair_N: Tensor,
    *,
    beta: float,
    length_normalised: bool,
    imitation: float,
    normaliser: float,
) -> LossTerms:
    """Return -sum(log sigmoid(margin) + imitation * what is preferred) / normaliser over pairs.

    DPO (arXiv 2305.18290), and beside it the mean log-probability of the preferred one's tokens
    (arXiv 2404.19733). A sample's reward is beta times the sum of its log-ratios to the reference,
    or their mean; the margin is the preferred one's reward minus the other's. `normaliser` is the
    pairs of the step. KL is estimated as if the reference had sampled the tokens.
    """
    samples = len(pair_N)
    log_ratio_A = policy_logprobs_A - reference_logprobs_A
    length_N = _per_sample(torch.ones_like(log_ratio_A), sample_A, samples)
    reward_N = beta * _per_sample(log_ratio_A, sample_A, samples)
    if length_normalised:
        reward_N = reward_N / length_N
    side_N = _per_sample(advantages_A, sample_A, samples).sign()
    margin_P = _per_sample(side_N * reward_N, pair_N, int(pair_N.max()) + 1)
    likely_N = _per_sample(policy_logprobs_A, sample_A, samples) / length_N
    likely = likely_N[side_N > 0].sum()
    loss = -(F.logsigmoid(margin_P).sum() + imitation * likely) / normaliser
    with torch.no_grad():
        sums = {
            "accuracy": float((margin_P > 0).sum()),
            "margin": float(margin_P.sum()),
            "preferred_reward": float(reward_N[side_N > 0].sum()),
            "rejected_reward": float(reward_N[side_N < 0].sum()),
            "kl_to_reference": float(k3(log_ratio_A).sum()),
        }
    return LossTerms(loss=loss, sums=sums)


def _per_sample(values_A: Tensor, sample_A: Tensor, samples: int) -> Tensor:
    """Return the sum of each sample's values, (N,)."""
    return torch.zeros(samples, dtype=values_A.dtype, device=values_A.device).index_add(
        0, sample_A, values_A
    )
