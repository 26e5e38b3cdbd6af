"""Log-probabilities of action tokens from hidden states, without ever holding all logits.

Shapes: A action tokens, C tokens of a chunk, E hidden width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_TOKENS = 256
"""Tokens projected at once; bounds memory at that many rows of the vocabulary."""
ROW_TOKENS = 64
"""Tokens whose softmax is taken at once in float32: few enough to stay in a cache."""


def action_logprobs(
    hidden_AE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    target_A: Tensor,
    temperatures_A: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probability and entropy in float32 and nats, and whether no token is likelier.

    Logits are divided by the temperature first. Only the log-probabilities carry a gradient.
    """
    logprobs_A, entropy_A, likeliest_A = _ActionLogprobs.apply(
        hidden_AE, weight_VE, bias_V, target_A, temperatures_A
    )
    return logprobs_A, entropy_A, likeliest_A


class _ActionLogprobs(torch.autograd.Function):
    """d logprob / d hidden = (W[target] - probabilities @ W) / temperature needs no loss, so the
    forward computes it while the probabilities are at hand, and the backward only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_AE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        target_A: Tensor,
        temperatures_A: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs_A = torch.empty(len(target_A), device=hidden_AE.device)
        entropy_A = torch.empty_like(logprobs_A)
        likeliest_A = torch.empty_like(logprobs_A, dtype=torch.bool)
        slope_AE = torch.empty_like(hidden_AE) if ctx.needs_input_grad[0] else None
        for first in range(0, len(target_A), CHUNK_TOKENS):
            chunk = slice(first, first + CHUNK_TOKENS)
            target_C, temperatures_C = target_A[chunk], temperatures_A[chunk]
            probability_CV, logprobs_A[chunk], entropy_A[chunk], likeliest_A[chunk] = (
                _probabilities(hidden_AE[chunk], weight_VE, bias_V, target_C, temperatures_C)
            )
            if slope_AE is not None:
                slope_CE = weight_VE[target_C] - probability_CV @ weight_VE
                slope_AE[chunk] = slope_CE / temperatures_C[:, None]
        ctx.save_for_backward(hidden_AE, weight_VE, bias_V, target_A, temperatures_A, slope_AE)
        ctx.mark_non_differentiable(entropy_A, likeliest_A)
        return logprobs_A, entropy_A, likeliest_A

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_A = gradients[0]
        hidden_AE, weight_VE, bias_V, target_A, temperatures_A, slope_AE = ctx.saved_tensors
        hidden_gradient_AE = None
        if slope_AE is not None:
            hidden_gradient_AE = (slope_AE * gradient_A[:, None]).to(hidden_AE.dtype)
        if not ctx.needs_input_grad[1]:
            return hidden_gradient_AE, None, None, None, None
        weight_gradient_VE = torch.zeros_like(weight_VE, dtype=torch.float32)
        bias_gradient_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for first in range(0, len(target_A), CHUNK_TOKENS):
            chunk = slice(first, first + CHUNK_TOKENS)
            target_C, temperatures_C = target_A[chunk], temperatures_A[chunk]
            scale_C1 = (gradient_A[chunk] / temperatures_C)[:, None].to(weight_VE.dtype)
            logit_gradient_CV, _, _, _ = _probabilities(
                hidden_AE[chunk], weight_VE, bias_V, target_C, temperatures_C
            )
            logit_gradient_CV *= -scale_C1
            logit_gradient_CV.scatter_add_(1, target_C[:, None], scale_C1)
            weight_gradient_VE += logit_gradient_CV.T @ hidden_AE[chunk]
            if bias_gradient_V is not None:
                bias_gradient_V += logit_gradient_CV.sum(0, dtype=torch.float32)
        bias_gradient = None if bias_gradient_V is None else bias_gradient_V.to(weight_VE.dtype)
        return hidden_gradient_AE, weight_gradient_VE.to(weight_VE.dtype), bias_gradient, None, None


def _probabilities(
    hidden_CE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    target_C: Tensor,
    temperatures_C: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return probabilities in the compute type, and of the target what `action_logprobs` returns."""
    values_CV = F.linear(hidden_CE, weight_VE, bias_V)
    logprobs_C = torch.empty_like(temperatures_C)
    entropy_C = torch.empty_like(temperatures_C)
    likeliest_C = torch.empty_like(temperatures_C, dtype=torch.bool)
    for first in range(0, len(values_CV), ROW_TOKENS):
        rows = slice(first, first + ROW_TOKENS)
        scaled = values_CV[rows].float() / temperatures_C[rows, None]
        logprobs = scaled.log_softmax(dim=-1)
        logprobs_C[rows] = logprobs.gather(1, target_C[rows, None])[:, 0]
        likeliest_C[rows] = logprobs_C[rows] >= logprobs.amax(dim=-1)
        probability = torch.exp(logprobs, out=scaled)
        entropy_C[rows] = -torch.linalg.vecdot(probability, logprobs)
        values_CV[rows] = probability
    return values_CV, logprobs_C, entropy_C, likeliest_C
