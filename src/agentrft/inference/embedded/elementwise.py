"""What stands between the matrix products of a layer, fused: compiled at first use, kept on disk.

A decode step has few rows, so its small operations cost more to start than to compute: as PyTorch
runs them they take as long as all matrix products.

Letters: N packed tokens, E width, F feed-forward, H query heads, K key-value heads, D head size,
P positions of the tables, R cache rows, T positions of a row, O = (H + 2 K) D.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentrft.inference.embedded.shape import Shape
from agentrft.kernels.loops import Floats, Stored, compiled, norm_rows, read, sigmoid, written

Places = NDArray[np.int64]


@compiled
def _add(x_NE: Floats, change_NE: Stored) -> None:
    for n in range(x_NE.shape[0]):
        for e in range(x_NE.shape[1]):
            x_NE[n, e] += read(change_NE[n, e])


@compiled
def _split_heads(
    qkv_NO: Stored,
    position_N: Places,
    cos_PD: Floats,
    sin_PD: Floats,
    head_norm_HD: Floats,
    epsilon: float,
    qkv_NHD: tuple[Stored, Stored, Stored],
) -> None:
    """Norm heads, where the family does, and rotate pairs of a head's halves."""
    q_NHD, k_NKD, v_NKD = qkv_NHD
    tokens, heads, size = q_NHD.shape
    kv_heads, half = k_NKD.shape[1], size // 2
    head_D = np.empty(size, np.float32)
    for n in range(tokens):
        p = position_N[n]
        for h in range(heads + kv_heads):
            square = np.float32(0)
            for d in range(size):
                head_D[d] = read(qkv_NO[n, h * size + d])
                square += head_D[d] * head_D[d]
            if head_norm_HD.shape[0]:
                inverse = np.float32(1) / np.sqrt(square / np.float32(size) + np.float32(epsilon))
                for d in range(size):
                    head_D[d] *= inverse * head_norm_HD[h, d]
            for d in range(half):
                # The tables hold the signs: sin is negative in the first half.
                left = head_D[d] * cos_PD[p, d] + head_D[half + d] * sin_PD[p, d]
                right = head_D[half + d] * cos_PD[p, half + d] + head_D[d] * sin_PD[p, half + d]
                if h < heads:
                    q_NHD[n, h, d] = written(left, q_NHD)
                    q_NHD[n, h, half + d] = written(right, q_NHD)
                else:
                    k_NKD[n, h - heads, d] = written(left, k_NKD)
                    k_NKD[n, h - heads, half + d] = written(right, k_NKD)
        for k in range(kv_heads):
            for d in range(size):
                v_NKD[n, k, d] = qkv_NO[n, (heads + kv_heads + k) * size + d]


@compiled
def _store(
    keys_PD: Stored, values_PD: Stored, slot_S: Places, key_SD: Stored, value_SD: Stored
) -> None:
    for s in range(slot_S.shape[0]):
        place = slot_S[s]
        for d in range(key_SD.shape[1]):
            keys_PD[place, d] = key_SD[s, d]
        for d in range(key_SD.shape[1]):
            values_PD[place, d] = value_SD[s, d]


@compiled
def _gate(gate_up_NF: Stored, product_NF: Stored) -> None:
    """SiLU of the first half times the second."""
    width = product_NF.shape[1]
    for n in range(product_NF.shape[0]):
        for f in range(width):
            gate, up = read(gate_up_NF[n, f]), read(gate_up_NF[n, width + f])
            product_NF[n, f] = written(gate * sigmoid(gate) * up, product_NF)


@compiled
def _merge(
    a_NKGD: Stored, lse_a_NKG: Floats, b_NKGD: Stored, lse_b_NKG: Floats, merged_NKGD: Stored
) -> None:
    tokens, kv_heads, groups, size = b_NKGD.shape
    for n in range(tokens):
        for k in range(kv_heads):
            for g in range(groups):
                share = sigmoid(lse_a_NKG[n, k, g] - lse_b_NKG[n, k, g])
                for d in range(size):
                    a, b = read(a_NKGD[n, k, g, d]), read(b_NKGD[n, k, g, d])
                    merged_NKGD[n, k, g, d] = written(b + share * (a - b), merged_NKGD)


class FusedElementwise:
    """Compiled operations over tensors of a CPU, float32 or bfloat16."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._no_head_norm = np.empty((0, shape.head_dim), np.float32)

    def norm(self, x_NE: Tensor, weight_E: Tensor, dtype: torch.dtype) -> Tensor:
        normed_NE = torch.empty(x_NE.shape, dtype=dtype)
        norm_rows(x_NE.numpy(), weight_E.numpy(), self._shape.norm_eps, _array(normed_NE))
        return normed_NE

    def add(self, x_NE: Tensor, change_NE: Tensor) -> None:
        _add(x_NE.numpy(), _array(change_NE))

    def split_heads(
        self,
        qkv_NO: Tensor,
        position_N: Tensor,
        cos_PD: Tensor,
        sin_PD: Tensor,
        head_norm_HD: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape, count = self._shape, len(qkv_NO)
        q_NHD = qkv_NO.new_empty(count, shape.heads, shape.head_dim)
        k_NKD = qkv_NO.new_empty(count, shape.kv_heads, shape.head_dim)
        v_NKD = torch.empty_like(k_NKD)
        _split_heads(
            _array(qkv_NO),
            position_N.numpy(),
            cos_PD.numpy(),
            sin_PD.numpy(),
            self._no_head_norm if head_norm_HD is None else head_norm_HD.numpy(),
            shape.norm_eps,
            (_array(q_NHD), _array(k_NKD), _array(v_NKD)),
        )
        return q_NHD, k_NKD, v_NKD

    def store(
        self, caches_RKTD: tuple[Tensor, Tensor], slot_S: Tensor, new_NKD: tuple[Tensor, Tensor]
    ) -> None:
        size = self._shape.head_dim
        keys, values = (_array(cache.view(-1, size)) for cache in caches_RKTD)
        key, value = (_array(each.reshape(-1, size)) for each in new_NKD)
        _store(keys, values, slot_S.numpy(), key, value)

    def gate(self, gate_up_NF: Tensor) -> Tensor:
        count, both = gate_up_NF.shape
        product_NF = gate_up_NF.new_empty(count, both // 2)
        _gate(_array(gate_up_NF), _array(product_NF))
        return product_NF

    def merge(self, a_NKGD: Tensor, lse_a_NKG: Tensor, b_NKGD: Tensor, lse_b_NKG: Tensor) -> Tensor:
        merged_NKGD = b_NKGD.new_empty(b_NKGD.shape)
        # Loops over numbers that do not lie side by side are slower than a copy.
        _merge(
            _array(a_NKGD.contiguous()),
            lse_a_NKG.contiguous().numpy(),
            _array(b_NKGD.contiguous()),
            lse_b_NKG.contiguous().numpy(),
            _array(merged_NKGD),
        )
        return merged_NKGD


def _array(tensor: Tensor) -> Stored:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()
