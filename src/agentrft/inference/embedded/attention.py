"""Attention that also returns its log-sum-exp, so that parts of the keys can be merged.

Letters: S sequences, H query heads, K key-value heads, G queries per key head, L query positions,
Q = G * L, T key positions, D head size.
"""

import torch
from torch import Tensor


def attend(
    q_SHLD: Tensor, k_SKTD: Tensor, v_SKTD: Tensor, mask_SLT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return output_SHLD and its log-sum-exp_SHL (float32); `mask_SLT` is added to the scores.

    A sequence must see at least one key.
    """
    if q_SHLD.device.type == "cpu":
        # PyTorch's own flash kernel: no public function hands out the log-sum-exp,
        # and it groups query heads without copying keys.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
            q_SHLD,
            k_SKTD,
            v_SKTD,
            attn_mask=None if mask_SLT is None else mask_SLT.unsqueeze(1),
        )
    return attend_by_matmul(q_SHLD, k_SKTD, v_SKTD, mask_SLT)


def attend_by_matmul(
    q_SHLD: Tensor, k_SKTD: Tensor, v_SKTD: Tensor, mask_SLT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Do the same with matrix products alone, on any device."""
    groups = q_SHLD.shape[1] // k_SKTD.shape[1]
    # The queries of a key head stand in line, so that keys need not be repeated for them.
    q_SKQD = q_SHLD.unflatten(1, (-1, groups)).flatten(2, 3)
    score_SKGLT = (q_SKQD @ k_SKTD.mT).float().unflatten(2, (groups, -1))
    score_SKGLT *= q_SHLD.shape[-1] ** -0.5
    if mask_SLT is not None:
        score_SKGLT += mask_SLT[:, None, None]
    lse_SKGL = score_SKGLT.logsumexp(-1)
    weight_SKGLT = (score_SKGLT - lse_SKGL.unsqueeze(-1)).exp_().to(v_SKTD.dtype)
    output_SKQD = weight_SKGLT.flatten(2, 3) @ v_SKTD
    return output_SKQD.unflatten(2, (groups, -1)).flatten(1, 2), lse_SKGL.flatten(1, 2)
