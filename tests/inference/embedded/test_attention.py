"""Both attention paths agree with the definition."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from agentrft.inference.embedded.attention import attend, attend_by_matmul

Path = Callable[..., tuple[Tensor, Tensor]]


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    score = q.double() @ k.double().mT * q.shape[-1] ** -0.5
    if mask is not None:
        score = score + mask.double().unsqueeze(1)
    return score.softmax(-1) @ v.double()


def tensors(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    shapes = ((3, 6, queries, 16), (3, 2, keys, 16), (3, 2, keys, 16))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("path", [attend, attend_by_matmul])
def test_ragged_grouped_attention_is_what_it_says(path: Path, queries: int) -> None:
    q, k, v = tensors(queries, 50)
    mask = torch.zeros(3, queries, 50)
    mask[0, :, 20:] = mask[2, :, 1:] = -torch.inf
    for use in (mask, None):
        output, lse = path(q, k, v, use)
        assert torch.allclose(output, reference(q, k, v, use).float(), atol=1e-5)
        assert lse.shape == q.shape[:3]
