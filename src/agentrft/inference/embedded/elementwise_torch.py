"""The operations of `elementwise.py` as PyTorch runs them, for other devices than a CPU."""

import torch
from torch import Tensor
from torch.nn import functional

from agentrft.inference.embedded.shape import Shape


class TorchElementwise:
    """One small operation after the other, on any device."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def norm(self, x_NE: Tensor, weight_E: Tensor, dtype: torch.dtype) -> Tensor:
        normed_NE = functional.rms_norm(x_NE, weight_E.shape, weight_E, self._shape.norm_eps)
        return normed_NE.to(dtype)

    def add(self, x_NE: Tensor, change_NE: Tensor) -> None:
        x_NE += change_NE

    def split_heads(
        self,
        qkv_NO: Tensor,
        position_N: Tensor,
        cos_PD: Tensor,
        sin_PD: Tensor,
        head_norm_HD: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = self._shape
        rotated = shape.heads + shape.kv_heads
        qkv_NHD = qkv_NO.unflatten(-1, (-1, shape.head_dim))
        qk_NHD, v_NKD = qkv_NHD[:, :rotated].float(), qkv_NHD[:, rotated:]
        if head_norm_HD is not None:
            qk_NHD = functional.rms_norm(qk_NHD, (shape.head_dim,), eps=shape.norm_eps)
            qk_NHD = qk_NHD * head_norm_HD
        cos_N1D, sin_N1D = cos_PD[position_N].unsqueeze(1), sin_PD[position_N].unsqueeze(1)
        swapped_NHD = qk_NHD.roll(shape.head_dim // 2, -1)
        qk_NHD = torch.addcmul(qk_NHD * cos_N1D, swapped_NHD, sin_N1D).to(qkv_NO.dtype)
        return qk_NHD[:, : shape.heads], qk_NHD[:, shape.heads :], v_NKD

    def store(
        self, caches_RKTD: tuple[Tensor, Tensor], slot_S: Tensor, new_NKD: tuple[Tensor, Tensor]
    ) -> None:
        for cache_RKTD, each_NKD in zip(caches_RKTD, new_NKD, strict=True):
            size = each_NKD.shape[-1]
            cache_RKTD.view(-1, size).index_copy_(0, slot_S, each_NKD.reshape(-1, size))

    def gate(self, gate_up_NF: Tensor) -> Tensor:
        gate_NF, up_NF = gate_up_NF.chunk(2, -1)
        return functional.silu(gate_NF).mul_(up_NF)

    def merge(self, a_NKGD: Tensor, lse_a_NKG: Tensor, b_NKGD: Tensor, lse_b_NKG: Tensor) -> Tensor:
        share_NKG1 = torch.sigmoid(lse_a_NKG - lse_b_NKG).unsqueeze(-1).to(a_NKGD.dtype)
        return torch.lerp(b_NKGD, a_NKGD, share_NKG1)
