"""Chunked log-probabilities against the plain formula."""

import pytest
import torch
from torch.nn import functional as F

from agentrft.training.projection import CHUNK_TOKENS, action_logprobs


@pytest.mark.parametrize("actions", [0, 1, CHUNK_TOKENS + 3])
@pytest.mark.parametrize("biased", [False, True])
def test_logprobs_entropy_and_gradients_are_those_of_a_plain_softmax(
    actions: int, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    hidden_AE, weight_VE = leaf(actions, 16), leaf(53, 16)
    bias_V = leaf(53) if biased else None
    inputs = [hidden_AE, weight_VE, *([bias_V] if bias_V is not None else [])]
    target_A = torch.randint(0, 53, (actions,), generator=generator)
    temperatures_A = torch.rand(actions, generator=generator) + 0.5
    credit_A = torch.randn(actions, generator=generator)

    logits_AV = F.linear(hidden_AE, weight_VE, bias_V) / temperatures_A[:, None]
    plain_AV = logits_AV.log_softmax(-1)
    plain_A = plain_AV.gather(1, target_A[:, None])[:, 0]
    expected = torch.autograd.grad((plain_A * credit_A).sum(), inputs)

    logprobs_A, entropy_A, likeliest_A = action_logprobs(
        hidden_AE, weight_VE, bias_V, target_A, temperatures_A
    )
    gradients = torch.autograd.grad((logprobs_A * credit_A).sum(), inputs)
    torch.testing.assert_close(logprobs_A, plain_A, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        entropy_A, -(plain_AV.exp() * plain_AV).sum(-1), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(likeliest_A, plain_AV.argmax(-1) == target_A)
    assert not entropy_A.requires_grad
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)
