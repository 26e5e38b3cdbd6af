"""What stands between the matrix products of the trainer's passes: fused loops on a CPU.

Shapes: C tokens of a chunk, T tokens of the tree, H heads, D head width, E hidden width, F width inside
the feed-forward.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agentrft.kernels.loops import Floats, Stored, compiled, norm_rows, read, sigmoid, written


class Elementwise(Protocol):
    """The operations of one model; they round once, to the type that they are given."""

    def norm(self, x_CE: Tensor, weight_E: Tensor) -> Tensor:
        """Return x over its root mean square, weighed."""
        ...

    def norm_backward(
        self,
        gradient_CE: Tensor,
        x_CE: Tensor,
        weight_E: Tensor,
        total_CE: Tensor,
        weight_gradient_E: Tensor | None,
    ) -> None:
        """Add the gradient of x to `total_CE`, and that of the weight in float32 if it is wanted."""
        ...

    def rotate(
        self,
        states_CHD: Tensor,
        tables_TD: tuple[Tensor, Tensor],
        first: int,
        scale: float,
        out_HTD: Tensor,
    ) -> None:
        """Rotate pairs of a head's halves by cosines and sines of places from `first` on, and scale.

        RoPE (arXiv 2104.09864) in transformers' layout.
        """
        ...

    def rotate_back(
        self, states_HTD: Tensor, tables_TD: tuple[Tensor, Tensor], chunk: slice, scale: float
    ) -> Tensor:
        """Return (C, H, D): turned back and scaled."""
        ...

    def gate(self, gate_CF: Tensor, up_CF: Tensor) -> Tensor:
        """Return SiLU of the first times the second."""
        ...

    def gate_backward(
        self, gradient_CF: Tensor, gate_CF: Tensor, up_CF: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `gate` returned, and the gradients of its arguments."""
        ...


def elementwise(device: torch.device, epsilon: float) -> Elementwise:
    """Return the operations for a device; `epsilon` is the norms'."""
    return FusedElementwise(epsilon) if device.type == "cpu" else TorchElementwise(epsilon)


@compiled
def _norm_backward(
    gradient_CE: Stored,
    x_CE: Stored,
    weight_E: Stored,
    epsilon: float,
    total_CE: Stored,
    weight_gradient_E: Floats,
) -> None:
    width = np.float32(x_CE.shape[1])
    for c in range(x_CE.shape[0]):
        square, along = np.float32(0), np.float32(0)
        for e in range(x_CE.shape[1]):
            x = read(x_CE[c, e])
            square += x * x
            along += read(gradient_CE[c, e]) * read(weight_E[e]) * x
        inverse = np.float32(1) / np.sqrt(square / width + np.float32(epsilon))
        shift = along * inverse * inverse / width
        for e in range(x_CE.shape[1]):
            weighted = read(gradient_CE[c, e]) * read(weight_E[e])
            change = (weighted - read(x_CE[c, e]) * shift) * inverse
            total_CE[c, e] = written(read(total_CE[c, e]) + change, total_CE)
        if weight_gradient_E.shape[0]:
            for e in range(x_CE.shape[1]):
                weight_gradient_E[e] += read(gradient_CE[c, e]) * read(x_CE[c, e]) * inverse


@compiled
def _rotate(
    states_CHD: Stored, cos_TD: Floats, sin_TD: Floats, first: int, scale: float, out_HTD: Stored
) -> None:
    tokens, heads, size = states_CHD.shape
    half, factor = size // 2, np.float32(scale)
    for h in range(heads):
        for c in range(tokens):
            for d in range(half):
                left, right = read(states_CHD[c, h, d]), read(states_CHD[c, h, half + d])
                cos, sin = cos_TD[first + c, d], sin_TD[first + c, d]
                turned = factor * (left * cos - right * sin)
                out_HTD[h, first + c, d] = written(turned, out_HTD)
                turned = factor * (right * cos + left * sin)
                out_HTD[h, first + c, half + d] = written(turned, out_HTD)


@compiled
def _rotate_back(
    states_HTD: Stored, cos_TD: Floats, sin_TD: Floats, first: int, scale: float, out_CHD: Stored
) -> None:
    tokens, heads, size = out_CHD.shape
    half, factor = size // 2, np.float32(scale)
    for h in range(heads):
        for c in range(tokens):
            t = first + c
            for d in range(half):
                left, right = read(states_HTD[h, t, d]), read(states_HTD[h, t, half + d])
                turned = factor * (left * cos_TD[t, d] + right * sin_TD[t, d])
                out_CHD[c, h, d] = written(turned, out_CHD)
                turned = factor * (right * cos_TD[t, d] - left * sin_TD[t, d])
                out_CHD[c, h, half + d] = written(turned, out_CHD)


@compiled
def _gate(gate_CF: Stored, up_CF: Stored, product_CF: Stored) -> None:
    for c in range(gate_CF.shape[0]):
        for f in range(gate_CF.shape[1]):
            gate = read(gate_CF[c, f])
            product_CF[c, f] = written(gate * sigmoid(gate) * read(up_CF[c, f]), product_CF)


@compiled
def _gate_backward(
    gradient_CF: Stored,
    gate_CF: Stored,
    up_CF: Stored,
    product_CF: Stored,
    gate_gradient_CF: Stored,
    up_gradient_CF: Stored,
) -> None:
    one = np.float32(1)
    for c in range(gate_CF.shape[0]):
        for f in range(gate_CF.shape[1]):
            gate, up, gradient = read(gate_CF[c, f]), read(up_CF[c, f]), read(gradient_CF[c, f])
            share = sigmoid(gate)
            slope = share * (one + gate * (one - share))
            product_CF[c, f] = written(gate * share * up, product_CF)
            gate_gradient_CF[c, f] = written(gradient * up * slope, gate_gradient_CF)
            up_gradient_CF[c, f] = written(gradient * gate * share, up_gradient_CF)


class FusedElementwise:
    """Compiled loops over tensors of a CPU, float32 or bfloat16, one pass over memory each."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon
        self._unwanted = np.empty(0, np.float32)

    def norm(self, x_CE: Tensor, weight_E: Tensor) -> Tensor:
        normed_CE = torch.empty_like(x_CE)
        norm_rows(_array(x_CE), _array(weight_E), self._epsilon, _array(normed_CE))
        return normed_CE

    def norm_backward(
        self,
        gradient_CE: Tensor,
        x_CE: Tensor,
        weight_E: Tensor,
        total_CE: Tensor,
        weight_gradient_E: Tensor | None,
    ) -> None:
        _norm_backward(
            _array(gradient_CE),
            _array(x_CE),
            _array(weight_E),
            self._epsilon,
            _array(total_CE),
            self._unwanted if weight_gradient_E is None else weight_gradient_E.numpy(),
        )

    def rotate(
        self,
        states_CHD: Tensor,
        tables_TD: tuple[Tensor, Tensor],
        first: int,
        scale: float,
        out_HTD: Tensor,
    ) -> None:
        cos, sin = (table.numpy() for table in tables_TD)
        _rotate(_array(states_CHD), cos, sin, first, scale, _array(out_HTD))

    def rotate_back(
        self, states_HTD: Tensor, tables_TD: tuple[Tensor, Tensor], chunk: slice, scale: float
    ) -> Tensor:
        (heads, _, size), (cos, sin) = states_HTD.shape, (table.numpy() for table in tables_TD)
        out_CHD = states_HTD.new_empty(chunk.stop - chunk.start, heads, size)
        _rotate_back(_array(states_HTD), cos, sin, chunk.start, scale, _array(out_CHD))
        return out_CHD

    def gate(self, gate_CF: Tensor, up_CF: Tensor) -> Tensor:
        product_CF = torch.empty_like(gate_CF)
        _gate(_array(gate_CF), _array(up_CF), _array(product_CF))
        return product_CF

    def gate_backward(
        self, gradient_CF: Tensor, gate_CF: Tensor, up_CF: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        product_CF, gate_gradient_CF, up_gradient_CF = (torch.empty_like(gate_CF) for _ in range(3))
        _gate_backward(
            _array(gradient_CF),
            _array(gate_CF),
            _array(up_CF),
            _array(product_CF),
            _array(gate_gradient_CF),
            _array(up_gradient_CF),
        )
        return product_CF, gate_gradient_CF, up_gradient_CF


class TorchElementwise:
    """One small operation after the other in float32, on any device."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon

    def norm(self, x_CE: Tensor, weight_E: Tensor) -> Tensor:
        unit_CE, _ = self._unit(x_CE)
        return (unit_CE * weight_E).to(x_CE.dtype)

    def norm_backward(
        self,
        gradient_CE: Tensor,
        x_CE: Tensor,
        weight_E: Tensor,
        total_CE: Tensor,
        weight_gradient_E: Tensor | None,
    ) -> None:
        unit_CE, inverse_C1 = self._unit(x_CE)
        gradient_CE = gradient_CE.float()
        if weight_gradient_E is not None:
            weight_gradient_E += (gradient_CE * unit_CE).sum(0)
        weighted_CE = gradient_CE * weight_E
        mean_C1 = (weighted_CE * unit_CE).mean(-1, keepdim=True)
        total_CE += weighted_CE.addcmul_(unit_CE, mean_C1, value=-1.0).mul_(inverse_C1)

    def rotate(
        self,
        states_CHD: Tensor,
        tables_TD: tuple[Tensor, Tensor],
        first: int,
        scale: float,
        out_HTD: Tensor,
    ) -> None:
        chunk = slice(first, first + len(states_CHD))
        cos_CD, sin_CD = (table[chunk] for table in tables_TD)
        out_HTD[:, chunk] = _turned(states_CHD.transpose(0, 1), cos_CD, sin_CD).mul_(scale)

    def rotate_back(
        self, states_HTD: Tensor, tables_TD: tuple[Tensor, Tensor], chunk: slice, scale: float
    ) -> Tensor:
        cos_CD, sin_CD = (table[chunk] for table in tables_TD)
        # Turning back is turning by the negative angle.
        turned_HCD = _turned(states_HTD[:, chunk], cos_CD, -sin_CD).mul_(scale)
        return turned_HCD.transpose(0, 1).to(states_HTD.dtype).contiguous()

    def gate(self, gate_CF: Tensor, up_CF: Tensor) -> Tensor:
        return (functional.silu(gate_CF.float()) * up_CF).to(gate_CF.dtype)

    def gate_backward(
        self, gradient_CF: Tensor, gate_CF: Tensor, up_CF: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient, gate = gradient_CF.float(), gate_CF.float()
        active = functional.silu(gate)
        gate_gradient = torch.ops.aten.silu_backward(gradient * up_CF, gate)
        dtype = gate_CF.dtype
        return (active * up_CF).to(dtype), gate_gradient.to(dtype), (active * gradient).to(dtype)

    def _unit(self, x_CE: Tensor) -> tuple[Tensor, Tensor]:
        x_CE = x_CE.float()
        inverse_C1 = x_CE.square().mean(-1, keepdim=True).add_(self._epsilon).rsqrt_()
        return x_CE * inverse_C1, inverse_C1


def _turned(states_HCD: Tensor, cos_CD: Tensor, sin_CD: Tensor) -> Tensor:
    left, right = states_HCD.float().chunk(2, -1)
    return torch.cat([left, right], -1) * cos_CD + torch.cat([-right, left], -1) * sin_CD


def _array(tensor: Tensor) -> Stored:
    stored = tensor.detach()
    return (stored.view(torch.uint16) if stored.dtype == torch.bfloat16 else stored).numpy()
