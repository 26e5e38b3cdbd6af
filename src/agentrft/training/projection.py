"""Log-probabilities of action tokens from hidden states, without ever holding all logits.

Shapes: A action tokens, C tokens of a chunk, E hidden width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 256
"""Tokens projected at once; bounds memory at that many rows of the vocabulary."""
ROW_TOKENS = 4
"""Tokens whose softmax is taken at once in float32: few enough to stay in a core's own cache."""


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


class _Softmax:
    """Probabilities of chunks of tokens, in memory that is taken once: it is most of a step's."""

    def __init__(self, hidden_AE: Tensor, weight_VE: Tensor, bias_V: Tensor | None) -> None:
        self._weight_VE, self._bias_V = weight_VE, bias_V
        vocabulary = len(weight_VE)
        tokens = min(CHUNK_TOKENS, len(hidden_AE))
        self._values_CV = hidden_AE.new_empty(tokens, vocabulary)
        self._scaled_RV = hidden_AE.new_empty(ROW_TOKENS, vocabulary, dtype=torch.float32)
        self._weights_RV = torch.empty_like(self._scaled_RV)

    def probabilities(
        self, hidden_CE: Tensor, target_C: Tensor, temperatures_C: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return probabilities in the compute type, and of the target what `action_logprobs` returns.

        The next call overwrites the probabilities.
        """
        values_CV = self._values_CV[: len(hidden_CE)]
        torch.mm(hidden_CE, self._weight_VE.T, out=values_CV)
        if self._bias_V is not None:
            values_CV += self._bias_V
        logprobs_C = torch.empty_like(temperatures_C)
        entropy_C = torch.empty_like(temperatures_C)
        likeliest_C = torch.empty_like(temperatures_C, dtype=torch.bool)
        for first in range(0, len(values_CV), ROW_TOKENS):
            rows = slice(first, min(first + ROW_TOKENS, len(values_CV)))
            scaled, weights = (
                buffer[: rows.stop - first] for buffer in (self._scaled_RV, self._weights_RV)
            )
            scaled.copy_(values_CV[rows]).div_(temperatures_C[rows, None])
            scaled -= scaled.amax(dim=-1, keepdim=True)
            total = torch.exp(scaled, out=weights).sum(dim=-1, keepdim=True)
            target = scaled.gather(1, target_C[rows, None])[:, 0]
            normaliser = total.log()[:, 0]
            logprobs_C[rows] = target - normaliser
            likeliest_C[rows] = target >= 0.0
            values_CV[rows] = weights.div_(total)
            entropy_C[rows] = normaliser - scaled.mul_(weights).sum(dim=-1)
        return values_CV, logprobs_C, entropy_C, likeliest_C


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
        softmax = _Softmax(hidden_AE, weight_VE, bias_V)
        for first in range(0, len(target_A), CHUNK_TOKENS):
            chunk = slice(first, first + CHUNK_TOKENS)
            target_C, temperatures_C = target_A[chunk], temperatures_A[chunk]
            probability_CV, logprobs_A[chunk], entropy_A[chunk], likeliest_A[chunk] = (
                softmax.probabilities(hidden_AE[chunk], target_C, temperatures_C)
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
        softmax = _Softmax(hidden_AE, weight_VE, bias_V)
        for first in range(0, len(target_A), CHUNK_TOKENS):
            chunk = slice(first, first + CHUNK_TOKENS)
            target_C, temperatures_C = target_A[chunk], temperatures_A[chunk]
            scale_C1 = (gradient_A[chunk] / temperatures_C)[:, None].to(weight_VE.dtype)
            logit_gradient_CV, _, _, _ = softmax.probabilities(
                hidden_AE[chunk], target_C, temperatures_C
            )
            logit_gradient_CV *= -scale_C1
            logit_gradient_CV.scatter_add_(1, target_C[:, None], scale_C1)
            weight_gradient_VE += logit_gradient_CV.T @ hidden_AE[chunk]
            if bias_gradient_V is not None:
                bias_gradient_V += logit_gradient_CV.sum(0, dtype=torch.float32)
        bias_gradient = None if bias_gradient_V is None else bias_gradient_V.to(weight_VE.dtype)
        return hidden_gradient_AE, weight_gradient_VE.to(weight_VE.dtype), bias_gradient, None, None
