"""The compiled loops give what PyTorch's operations give."""

import pytest
import torch
from torch import Tensor

from agentrft.training.elementwise import FusedElementwise, TorchElementwise, elementwise

FUSED, PLAIN = FusedElementwise(1e-5), TorchElementwise(1e-5)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_alike(one: Tensor, other: Tensor, least: float = 1e-5) -> None:
    """Allow rounding to the other side in bfloat16, which has eight bits, and float32's own noise."""
    loose = 2**-7 if one.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(one, other, atol=least, rtol=loose)


def tables(places: int, size: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(places)[:, None] * torch.linspace(1.0, 0.01, size // 2)
    both = torch.cat([angles, angles], -1)
    return both.cos(), both.sin()


def test_a_processor_takes_the_loops_and_other_devices_do_not() -> None:
    assert isinstance(elementwise(torch.device("cpu"), 1e-5), FusedElementwise)
    assert isinstance(elementwise(torch.device("meta"), 1e-5), TorchElementwise)


@DTYPES
def test_norms_are_equal_forward_and_backward(dtype: torch.dtype) -> None:
    x, weight, gradient = drawn(dtype, 7, 40), drawn(dtype, 40), drawn(dtype, 7, 40) * 3
    assert_alike(FUSED.norm(x, weight), PLAIN.norm(x, weight))
    found: list[tuple[Tensor, Tensor]] = []
    for small in (FUSED, PLAIN):
        total, of_weight = torch.zeros_like(x), torch.zeros(40)
        small.norm_backward(gradient, x, weight, total, of_weight)
        found.append((total, of_weight))
        again = total.clone()
        small.norm_backward(gradient, x, weight, again, None)
        assert_alike(again, total * 2)
    assert_alike(found[0][0], found[1][0])
    assert_alike(found[0][1], found[1][1], 1e-4)


@DTYPES
def test_heads_are_turned_into_their_places_and_back(dtype: torch.dtype) -> None:
    states, rotation = drawn(dtype, 5, 3, 16), tables(9, 16)
    turned: list[Tensor] = []
    for small in (FUSED, PLAIN):
        out = torch.zeros(3, 9, 16, dtype=dtype)
        small.rotate(states, rotation, 2, 0.5, out)
        assert not out[:, :2].any()
        assert not out[:, 7:].any()
        turned.append(out)
    assert_alike(turned[0], turned[1])
    back = [small.rotate_back(turned[0], rotation, slice(2, 7), 2.0) for small in (FUSED, PLAIN)]
    assert_alike(back[0], back[1])
    assert_alike(back[0], states, 0.03)


@DTYPES
def test_gates_are_equal_forward_and_backward_also_where_they_saturate(dtype: torch.dtype) -> None:
    gate, up, gradient = (drawn(dtype, 6, width)[:, :48] * 40 for width in (48, 49, 50))
    gate, up, gradient = (each.contiguous() for each in (gate, up, gradient))
    expected = PLAIN.gate_backward(gradient, gate, up)
    assert_alike(FUSED.gate(gate, up), PLAIN.gate(gate, up))
    for one, other in zip(FUSED.gate_backward(gradient, gate, up), expected, strict=True):
        assert_alike(one, other, 1e-3)


def test_what_is_not_a_number_stays_none() -> None:
    x = torch.full((1, 8), float("nan"))
    assert FUSED.norm(x, torch.ones(8)).isnan().all()
    assert FUSED.gate(x, torch.ones(1, 8)).isnan().all()
