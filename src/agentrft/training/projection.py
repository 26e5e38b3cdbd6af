"""Log-probabilities of action tokens from hidden states, chunked over the vocabulary's rows.

Shapes: A action tokens, C tokens of a chunk, E hidden width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_TOKENS = 256
"""Rows projected at once; bounds memory at CHUNK_TOKENS * V floats."""


def action_logprobs(
    hidden_AE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    target_A: Tensor,
    temperatures_A: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return float32 log-probability of each target and entropy of each distribution, in nats.

    Logits are divided by the temperature first. The entropy carries no gradient.
    """
    logprobs_A, entropy_A = _ActionLogprobs.apply(
        hidden_AE, weight_VE, bias_V, target_A, temperatures_A
    )
    return logprobs_A, entropy_A


class _ActionLogprobs(torch.autograd.Function):
    """d logprob / d hidden = (W[target] - softmax @ W) / temperature needs no loss, so the forward
    computes it while the logits are at hand and the backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_AE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        target_A: Tensor,
        temperatures_A: Tensor,
    ) -> tuple[Tensor, Tensor]:
        logprobs_A = torch.empty(len(target_A), device=hidden_AE.device)
        entropy_A = torch.empty_like(logprobs_A)
        slope_AE = torch.empty_like(hidden_AE) if ctx.needs_input_grad[0] else None
        for first in range(0, len(target_A), CHUNK_TOKENS):
            chunk = slice(first, first + CHUNK_TOKENS)
            target_C1 = target_A[chunk, None]
            temperatures_C1 = temperatures_A[chunk, None]
            logprobs_CV = _log_softmax(hidden_AE[chunk], weight_VE, bias_V, temperatures_C1)
            logprobs_A[chunk] = logprobs_CV.gather(1, target_C1)[:, 0]
            probability_CV = logprobs_CV.exp()
            entropy_A[chunk] = -torch.linalg.vecdot(probability_CV, logprobs_CV)
            if slope_AE is not None:
                expected_CE = probability_CV.to(weight_VE.dtype) @ weight_VE
                slope_AE[chunk] = (weight_VE[target_C1[:, 0]] - expected_CE) / temperatures_C1
        ctx.save_for_backward(hidden_AE, weight_VE, bias_V, target_A, temperatures_A, slope_AE)
        ctx.mark_non_differentiable(entropy_A)
        return logprobs_A, entropy_A

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_A = gradients[0]
        hidden_AE, weight_VE, bias_V, target_A, temperatures_A, slope_AE = ctx.saved_tensors
        hidden_gradient_AE = None
        if slope_AE is not None:
            hidden_gradient_AE = (slope_AE * gradient_A[:, None]).to(hidden_AE.dtype)
        weight_gradient_VE = bias_gradient_V = None
        if ctx.needs_input_grad[1]:
            weight_gradient_VE = torch.zeros_like(weight_VE, dtype=torch.float32)
            bias_gradient_V = None if bias_V is None else torch.zeros_like(bias_V)
            for first in range(0, len(target_A), CHUNK_TOKENS):
                chunk = slice(first, first + CHUNK_TOKENS)
                temperatures_C1 = temperatures_A[chunk, None]
                scale_C1 = gradient_A[chunk, None] / temperatures_C1
                logits_CV = _log_softmax(hidden_AE[chunk], weight_VE, bias_V, temperatures_C1)
                logits_CV.exp_().mul_(-scale_C1)
                logits_CV.scatter_add_(1, target_A[chunk, None], scale_C1)
                weight_gradient_VE += logits_CV.to(weight_VE.dtype).T @ hidden_AE[chunk]
                if bias_gradient_V is not None:
                    bias_gradient_V += logits_CV.sum(0)
            weight_gradient_VE = weight_gradient_VE.to(weight_VE.dtype)
        return hidden_gradient_AE, weight_gradient_VE, bias_gradient_V, None, None


def _log_softmax(
    hidden_CE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, temperatures_C1: Tensor
) -> Tensor:
    logits_CV = F.linear(hidden_CE, weight_VE, bias_V).float()
    return logits_CV.div_(temperatures_C1).log_softmax(dim=-1)
