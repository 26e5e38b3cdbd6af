"""Attention over a token tree: every token looks at its branch's ancestors and at itself. Exact.

A branch's keys meet its own queries and those of everything below it, which lie side by side, so
nothing is padded, masked or gathered; what a token finds at each of its ancestors is joined by the
softmax's denominators. Queries come scaled. Shapes: as in `pack.py`, and P tokens of one branch, N
queries with all their heads, G key-value heads, Q query heads for each, H = G * Q, D head width,
X = D + 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrft.training.pack import Branch, MicroBatch

CHUNK_SCORES = 1 << 19
"""Scores held at once in the backward; twice, they are about what a core's own cache takes."""


@dataclass(frozen=True, slots=True)
class Attended:
    """What the backward needs beside queries, keys and values."""

    out_HTD: Tensor
    normaliser_HT: Tensor
    """Logarithm of the softmax's denominator, float32."""


def attend(query_HTD: Tensor, key_GTD: Tensor, value_GTD: Tensor, tree: MicroBatch) -> Attended:
    """Return each token's attention output."""
    H, T, _ = query_HTD.shape
    out_HTD = torch.empty_like(query_HTD)
    normaliser_HT = query_HTD.new_empty((H, T), dtype=torch.float32)
    query_GQTD, out_GQTD, normaliser_GQT = (
        each.unflatten(0, (len(key_GTD), -1)) for each in (query_HTD, out_HTD, normaliser_HT)
    )
    for branch in tree.branches:
        own, below = slice(branch.first, branch.last), slice(branch.last, branch.end)
        key_G1PD, value_G1PD = key_GTD[:, None, own], value_GTD[:, None, own]
        out_GQTD[:, :, own], normaliser_GQT[:, :, own] = _softmax_product(
            query_GQTD[:, :, own], key_G1PD, value_G1PD, causal=True
        )
        if branch.last < branch.end:
            out, normaliser = _softmax_product(
                query_GQTD[:, :, below], key_G1PD, value_G1PD, causal=False
            )
            # Branches come after those below them, so what they found is already here.
            found = normaliser_GQT[:, :, below]
            share = (normaliser - found).sigmoid_().to(out.dtype)[..., None]
            out_GQTD[:, :, below].lerp_(out, share)
            found.copy_(torch.logaddexp(normaliser, found))
    return Attended(out_HTD, normaliser_HT)


def attend_backward(
    gradient_HTD: Tensor,
    query_HTD: Tensor,
    key_GTD: Tensor,
    value_GTD: Tensor,
    attended: Attended,
    tree: MicroBatch,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of scaled queries, keys and values; scores are computed anew."""
    G = len(key_GTD)
    delta_HT = torch.linalg.vecdot(gradient_HTD, attended.out_HTD).float()
    # Two more columns make the products subtract the normaliser (and delta) themselves; split in
    # two they keep float32 precision in bfloat16.
    parts = _Parts(
        query_GTQX=_by_token(query_HTD, attended.normaliser_HT, G),
        gradient_GTQX=_by_token(gradient_HTD, delta_HT, G),
        key_GTX=_with_ones(key_GTD),
        value_GTX=_with_ones(value_GTD),
    )
    D = query_HTD.shape[-1]
    query_gradient_GTQD = torch.empty_like(parts.query_GTQX[..., :D])
    key_gradient_GTD, value_gradient_GTD = torch.empty_like(key_GTD), torch.empty_like(value_GTD)
    for branch in tree.branches:
        own = slice(branch.first, branch.last)
        key_gradient_GTD[:, own], value_gradient_GTD[:, own] = _branch_backward(
            branch, parts, query_gradient_GTQD
        )
    query_gradient_HTD = query_gradient_GTQD.transpose(1, 2).reshape(query_HTD.shape)
    return query_gradient_HTD, key_gradient_GTD, value_gradient_GTD


def _softmax_product(
    query_GQND: Tensor, key_G1PD: Tensor, value_G1PD: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attend from every query to every key of its head; return outputs and normalisers."""
    if query_GQND.device.type == "cpu":
        Q = query_GQND.shape[1]
        # The public function does not return the normaliser, without which parts cannot be joined.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
            query_GQND,
            key_G1PD.expand(-1, Q, -1, -1),
            value_G1PD.expand(-1, Q, -1, -1),
            0.0,
            causal,
            scale=1.0,
        )
    scores = (query_GQND @ key_G1PD.transpose(2, 3)).float()
    if causal:
        scores = scores + torch.full_like(scores[0, 0], float("-inf")).triu(1)
    normaliser = scores.logsumexp(-1)
    out = (scores - normaliser[..., None]).exp().to(query_GQND.dtype) @ value_G1PD
    return out, normaliser


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Factors of the backward, with the columns that subtract; a token's heads lie side by side."""

    query_GTQX: Tensor
    gradient_GTQX: Tensor
    key_GTX: Tensor
    value_GTX: Tensor


def _branch_backward(
    branch: Branch, parts: _Parts, query_gradient_GTQD: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gradients of the branch's keys and values in float32; add those of queries in place."""
    G, _, Q, D = query_gradient_GTQD.shape
    P = branch.last - branch.first
    own = slice(branch.first, branch.last)
    key_GPX, value_GPX = parts.key_GTX[:, own], parts.value_GTX[:, own]
    key_gradient_GPD = key_GPX.new_zeros((G, P, D), dtype=torch.float32)
    value_gradient_GPD = torch.zeros_like(key_gradient_GPD)
    rows = max(1, CHUNK_SCORES // (P * G * Q))
    for first in (*range(branch.first, branch.last, rows), *range(branch.last, branch.end, rows)):
        inside = first < branch.last
        last = min(first + rows, branch.last if inside else branch.end)
        query_GNX = parts.query_GTQX[:, first:last].flatten(1, 2)
        gradient_GNX = parts.gradient_GTQX[:, first:last].flatten(1, 2)
        weight_GPN = (key_GPX @ query_GNX.transpose(1, 2)).exp_()
        if inside:
            queries_N = torch.arange(first, last, device=key_GPX.device).repeat_interleave(Q)
            keys_P1 = torch.arange(branch.first, branch.last, device=key_GPX.device)[:, None]
            weight_GPN.masked_fill_(keys_P1 > queries_N, 0.0)
        value_gradient_GPD += weight_GPN @ gradient_GNX[..., :D]
        weight_GPN *= value_GPX @ gradient_GNX.transpose(1, 2)
        key_gradient_GPD += weight_GPN @ query_GNX[..., :D]
        found_GnQD = (weight_GPN.transpose(1, 2) @ key_GPX[..., :D]).unflatten(1, (-1, Q))
        if inside:
            query_gradient_GTQD[:, first:last] = found_GnQD
        else:
            query_gradient_GTQD[:, first:last] += found_GnQD
    return key_gradient_GPD, value_gradient_GPD


def _by_token(values_HTD: Tensor, subtract_HT: Tensor, G: int) -> Tensor:
    coarse_HT = subtract_HT.to(values_HTD.dtype)
    fine_HT = (subtract_HT - coarse_HT.float()).to(values_HTD.dtype)
    H, T, D = values_HTD.shape
    out_GTQX = values_HTD.new_empty(G, T, H // G, D + 2)
    out_GQTX = out_GTQX.transpose(1, 2)
    out_GQTX[..., :D] = values_HTD.unflatten(0, (G, H // G))
    out_GQTX[..., D] = -coarse_HT.unflatten(0, (G, H // G))
    out_GQTX[..., D + 1] = -fine_HT.unflatten(0, (G, H // G))
    return out_GTQX


def _with_ones(values_GTD: Tensor) -> Tensor:
    return torch.cat([values_GTD, torch.ones_like(values_GTD[..., :2])], dim=-1)
