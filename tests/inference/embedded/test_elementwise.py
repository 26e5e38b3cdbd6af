"""The compiled operations do what PyTorch's do, one by one."""

import pytest
import torch
from torch import Tensor

from agentrft.inference.embedded.attention import attend
from agentrft.inference.embedded.elementwise import FusedElementwise
from agentrft.inference.embedded.elementwise_torch import TorchElementwise
from agentrft.inference.embedded.shape import Rope, Shape

SHAPE = Shape(
    family="llama",
    vocabulary=100,
    width=48,
    feed_forward=40,
    layers=1,
    heads=6,
    kv_heads=2,
    head_dim=16,
    norm_eps=1e-5,
    rope=Rope(theta=1e4),
    context_tokens=64,
    tied=True,
    qkv_bias=False,
    output_bias=False,
    feed_forward_bias=False,
    head_norm=False,
)
FUSED, PLAIN = FusedElementwise(SHAPE), TorchElementwise(SHAPE)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


def drawn(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_alike(one: Tensor, other: Tensor) -> None:
    """Allow rounding once more in bfloat16, which has eight bits, and float32's own noise."""
    assert one.dtype == other.dtype
    loose = 2**-6 if one.dtype == torch.bfloat16 else 1e-6
    assert torch.allclose(one.float(), other.float(), rtol=loose, atol=loose)


@DTYPES
def test_norms_agree(dtype: torch.dtype) -> None:
    x, weight = 3 * drawn(7, 48), drawn(48, seed=1)
    assert_alike(FUSED.norm(x, weight, dtype), PLAIN.norm(x, weight, dtype))


@DTYPES
def test_sums_agree(dtype: torch.dtype) -> None:
    change = drawn(7, 48, dtype=dtype, seed=1)
    sums = drawn(7, 48), drawn(7, 48)
    FUSED.add(sums[0], change)
    PLAIN.add(sums[1], change)
    assert torch.equal(*sums)


@DTYPES
@pytest.mark.parametrize("normed", [False, True])
def test_heads_are_split_and_turned_alike(dtype: torch.dtype, normed: bool) -> None:
    qkv = drawn(7, 10 * 16, dtype=dtype)
    angles = torch.arange(64)[:, None] * torch.rand(8, generator=torch.Generator().manual_seed(3))
    cos, sin = angles.cos().repeat(1, 2), torch.cat([-angles.sin(), angles.sin()], 1)
    norm = drawn(8, 16, seed=4) if normed else None
    position = torch.tensor([0, 1, 5, 63, 7, 7, 2])
    for fused, plain in zip(
        FUSED.split_heads(qkv, position, cos, sin, norm),
        PLAIN.split_heads(qkv, position, cos, sin, norm),
        strict=True,
    ):
        assert_alike(fused, plain)


@DTYPES
def test_new_keys_and_values_go_where_they_belong(dtype: torch.dtype) -> None:
    slots = torch.tensor([3, 13, 20, 8])
    new = drawn(2, 2, 16, dtype=dtype), drawn(2, 2, 16, dtype=dtype, seed=1)
    filled = [tuple(torch.zeros(2, 2, 7, 16, dtype=dtype) for _ in range(2)) for _ in range(2)]
    for elementwise, (keys, values) in zip((FUSED, PLAIN), filled, strict=True):
        elementwise.store((keys, values), slots, new)
    for fused, plain in zip(*filled, strict=True):
        assert torch.equal(fused, plain)
    assert torch.equal(filled[0][0].view(-1, 16)[13], new[0][0, 1])


@DTYPES
def test_gates_agree_from_minus_to_plus_everything(dtype: torch.dtype) -> None:
    gate = torch.linspace(-120, 120, 9 * 40).view(9, 40)
    both = torch.cat([gate, drawn(9, 40)], 1).to(dtype)
    assert_alike(FUSED.gate(both), PLAIN.gate(both))


@DTYPES
@pytest.mark.parametrize("elementwise", [FUSED, PLAIN], ids=["fused", "plain"])
def test_attention_over_two_pieces_merges_into_attention_over_all(
    elementwise: FusedElementwise | TorchElementwise, dtype: torch.dtype
) -> None:
    q, k, v = (drawn(3, heads, size, 16, seed=heads) for heads, size in ((6, 1), (2, 50), (2, 50)))

    def piece(part: slice) -> tuple[Tensor, Tensor]:
        output, lse = attend(q, k[:, :, part], v[:, :, part])
        return output[:, :, 0].unflatten(1, (2, 3)).to(dtype), lse[..., 0].unflatten(1, (2, 3))

    whole, _ = piece(slice(0, 50))
    assert_alike(elementwise.merge(*piece(slice(0, 33)), *piece(slice(33, 50))), whole)


def test_what_is_not_a_number_stays_none() -> None:
    broken = drawn(2, 48)
    broken[1, 5] = torch.nan
    assert FUSED.norm(broken, torch.ones(48), torch.bfloat16).isnan().sum() == 48
    assert FUSED.gate(torch.full((1, 80), torch.nan)).isnan().all()
