"""Attention over a token tree: every token looks at its branch's ancestors and at itself. Exact.

Root keys meet the queries of all branches at once, the rest goes branch by branch. Queries come
scaled. Shapes: as in `pack.py`, and P root tokens, G key-value heads, Q query heads for each,
H = G * Q, D head width, X = D + 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrft.training.pack import MicroBatch

CHUNK_SCORES = 1 << 20
"""Scores held at once in the backward; about what a core's own cache takes in bfloat16."""


@dataclass(frozen=True, slots=True)
class Attended:
    """What the backward needs beside queries, keys and values."""

    out_HTD: Tensor
    normaliser_HT: Tensor
    """Logarithm of the softmax's denominator, float32."""


def attend(query_HTD: Tensor, key_GTD: Tensor, value_GTD: Tensor, tree: MicroBatch) -> Attended:
    """Return each token's attention output."""
    H, T, D = query_HTD.shape
    G, P = key_GTD.shape[0], tree.root_tokens
    R, S = tree.query_RS.shape
    query_GQTD = query_HTD.view(G, H // G, T, D)
    root = _softmax_product(
        query_GQTD[:, :, :P], key_GTD[:, None, :P], value_GTD[:, None, :P], causal=True
    )
    if R == 0:
        return root
    below = _own_branches(query_HTD, key_GTD, value_GTD, tree)
    if P == 0:
        return below
    seen = _softmax_product(query_GQTD[:, :, P:], key_GTD[:, None, :P], value_GTD[:, None, :P])
    normaliser_HU = torch.logaddexp(seen.normaliser_HT, below.normaliser_HT)
    out_HUD = (
        seen.out_HTD * (seen.normaliser_HT - normaliser_HU).exp().to(seen.out_HTD.dtype)[..., None]
    )
    out_HUD.addcmul_(
        below.out_HTD,
        (below.normaliser_HT - normaliser_HU).exp().to(seen.out_HTD.dtype)[..., None],
    )
    return Attended(
        torch.cat([root.out_HTD, out_HUD], dim=1),
        torch.cat([root.normaliser_HT, normaliser_HU], dim=1),
    )


def attend_backward(
    gradient_HTD: Tensor,
    query_HTD: Tensor,
    key_GTD: Tensor,
    value_GTD: Tensor,
    attended: Attended,
    tree: MicroBatch,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of scaled queries, keys and values; scores are computed anew."""
    H, T, D = query_HTD.shape
    P = tree.root_tokens
    R, S = tree.query_RS.shape
    delta_HT = torch.linalg.vecdot(gradient_HTD, attended.out_HTD).float()
    # Two more columns make the products subtract the normaliser (and delta) themselves; split in
    # two they keep float32 precision in bfloat16.
    query_HTX = _augment(query_HTD, attended.normaliser_HT)
    gradient_HTX = _augment(gradient_HTD, delta_HT)
    key_GTX, value_GTX = _with_ones(key_GTD), _with_ones(value_GTD)
    sums = _Sums(
        query_HTD=torch.empty_like(query_HTD),
        key_GTD=torch.zeros_like(key_GTD, dtype=torch.float32),
        value_GTD=torch.zeros_like(value_GTD, dtype=torch.float32),
    )
    if P:
        _root_backward(query_HTX, gradient_HTX, key_GTX, value_GTX, P, sums)
    if R:
        _branches_backward(query_HTX, gradient_HTX, key_GTX, value_GTX, tree, sums)
    dtype = query_HTD.dtype
    return sums.query_HTD, sums.key_GTD.to(dtype), sums.value_GTD.to(dtype)


def _softmax_product(
    query_GQND: Tensor,
    key_G1MD: Tensor,
    value_G1MD: Tensor,
    *,
    causal: bool = False,
    bias: Tensor | None = None,
) -> Attended:
    """Attend from every query to every key of its head; heads are flattened in the result."""
    G, Q, N, D = query_GQND.shape
    key_GQMD = key_G1MD.expand(G, Q, -1, D)
    value_GQMD = value_G1MD.expand(G, Q, -1, D)
    if query_GQND.device.type == "cpu" and N > 0:
        # The public function does not return the normaliser, without which parts cannot be joined.
        out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
            query_GQND, key_GQMD, value_GQMD, 0.0, causal, attn_mask=bias, scale=1.0
        )
    else:
        scores = (query_GQND @ key_GQMD.transpose(2, 3)).float()
        if causal:
            scores = scores + torch.full_like(scores[0, 0], float("-inf")).triu(1)
        if bias is not None:
            scores = scores + bias
        normaliser = scores.logsumexp(-1)
        out = (scores - normaliser[..., None]).exp().to(query_GQND.dtype) @ value_GQMD
    return Attended(out.reshape(G * Q, N, D), normaliser.reshape(G * Q, N))


def _own_branches(
    query_HTD: Tensor, key_GTD: Tensor, value_GTD: Tensor, tree: MicroBatch
) -> Attended:
    H, _, D = query_HTD.shape
    G = key_GTD.shape[0]
    R, S = tree.query_RS.shape
    query_GQRSD = query_HTD.index_select(1, tree.query_RS.flatten()).view(G, H // G, R, S, D)
    key_GRKD = key_GTD.index_select(1, tree.key_RK.flatten()).view(G, R, -1, D)
    value_GRKD = value_GTD.index_select(1, tree.key_RK.flatten()).view(G, R, -1, D)
    bias_R1SK = torch.zeros_like(tree.visible_RSK[:, None], dtype=query_HTD.dtype)
    bias_R1SK.masked_fill_(~tree.visible_RSK[:, None], float("-inf"))
    heads = [
        _softmax_product(
            query_GQRSD[head].transpose(0, 1),
            key_GRKD[head][:, None],
            value_GRKD[head][:, None],
            bias=bias_R1SK,
        )
        for head in range(G)
    ]
    out_HND = torch.stack([part.out_HTD.view(R, H // G, S, D) for part in heads])
    out_HND = out_HND.transpose(1, 2).reshape(H, R * S, D)
    normaliser_HN = torch.stack([part.normaliser_HT.view(R, H // G, S) for part in heads])
    normaliser_HN = normaliser_HN.transpose(1, 2).reshape(H, R * S)
    return Attended(
        out_HND.index_select(1, tree.unpad_U), normaliser_HN.index_select(1, tree.unpad_U)
    )


@dataclass(frozen=True, slots=True)
class _Sums:
    """Gradients under construction; keys and values add up over branches in float32."""

    query_HTD: Tensor
    key_GTD: Tensor
    value_GTD: Tensor


def _root_backward(
    query_HTX: Tensor, gradient_HTX: Tensor, key_GTX: Tensor, value_GTX: Tensor, P: int, sums: _Sums
) -> None:
    """Scores between all tokens and the root's keys."""
    H, T, X = query_HTX.shape
    G, D = key_GTX.shape[0], X - 2
    key_GPX, value_GPX = key_GTX[:, :P], value_GTX[:, :P]
    key_GPD = key_GPX[..., :D]
    rows = max(1, CHUNK_SCORES // (P * H))
    future_PP = torch.ones(P, P, dtype=torch.bool, device=query_HTX.device).triu(1)
    for first in (*range(0, P, rows), *range(P, T, rows)):
        last = min(first + rows, P if first < P else T)
        query_GNX = query_HTX[:, first:last].reshape(G, -1, X)
        gradient_GNX = gradient_HTX[:, first:last].reshape(G, -1, X)
        weight_GNP = (query_GNX @ key_GPX.transpose(1, 2)).exp_()
        if first < P:
            weight_HNP = weight_GNP.view(H, last - first, P)
            weight_HNP.masked_fill_(future_PP[first:last], 0.0)
        sums.value_GTD[:, :P] += weight_GNP.transpose(1, 2) @ gradient_GNX[..., :D]
        weight_GNP *= gradient_GNX @ value_GPX.transpose(1, 2)
        sums.query_HTD[:, first:last] = (weight_GNP @ key_GPD).view(H, last - first, D)
        sums.key_GTD[:, :P] += weight_GNP.transpose(1, 2) @ query_GNX[..., :D]


def _branches_backward(
    query_HTX: Tensor,
    gradient_HTX: Tensor,
    key_GTX: Tensor,
    value_GTX: Tensor,
    tree: MicroBatch,
    sums: _Sums,
) -> None:
    """Scores between tokens below the root and keys of their own branch and its ancestors."""
    H, T, X = query_HTX.shape
    G, D, P = key_GTX.shape[0], X - 2, tree.root_tokens
    Q = H // G
    R, S = tree.query_RS.shape
    K = tree.key_RK.shape[1]
    below_HND = torch.empty(H, R * S, D, dtype=query_HTX.dtype, device=query_HTX.device)
    below_HRSD = below_HND.view(H, R, S, D)
    rows = max(1, CHUNK_SCORES // (H * S * K))
    for first in range(0, R, rows):
        chunk = slice(first, first + rows)
        queries, keys = tree.query_RS[chunk].flatten(), tree.key_RK[chunk].flatten()
        r = tree.query_RS[chunk].shape[0]

        def by_branch(values_HTX: Tensor, places: Tensor = queries, r: int = r) -> Tensor:
            picked = values_HTX.index_select(1, places).view(G, Q, r, S, X)
            return picked.transpose(1, 2).reshape(G * r, Q * S, X)

        query, gradient = by_branch(query_HTX), by_branch(gradient_HTX)
        key = key_GTX.index_select(1, keys).view(G * r, K, X)
        value = value_GTX.index_select(1, keys).view(G * r, K, X)
        weight = (query @ key.transpose(1, 2)).exp_()
        hidden_rSK = ~tree.visible_RSK[chunk]
        weight.view(G, r, Q, S, K).masked_fill_(hidden_rSK[None, :, None], 0.0)
        value_gradient = weight.transpose(1, 2) @ gradient[..., :D]
        weight *= gradient @ value.transpose(1, 2)
        below = (weight @ key[..., :D]).view(G, r, Q, S, D).transpose(1, 2)
        below_HRSD[:, chunk] = below.reshape(H, r, S, D)
        key_gradient = weight.transpose(1, 2) @ query[..., :D]
        sums.value_GTD.index_add_(1, keys, value_gradient.view(G, r * K, D).float())
        sums.key_GTD.index_add_(1, keys, key_gradient.view(G, r * K, D).float())
    below_HUD = below_HND.index_select(1, tree.unpad_U)
    if P:
        sums.query_HTD[:, P:] += below_HUD
    else:
        sums.query_HTD.copy_(below_HUD)


def _augment(values_HTD: Tensor, subtract_HT: Tensor) -> Tensor:
    coarse_HT = subtract_HT.to(values_HTD.dtype)
    fine_HT = (subtract_HT - coarse_HT.float()).to(values_HTD.dtype)
    return torch.cat([values_HTD, -coarse_HT[..., None], -fine_HT[..., None]], dim=-1)


def _with_ones(values_GTD: Tensor) -> Tensor:
    return torch.cat([values_GTD, torch.ones_like(values_GTD[..., :2])], dim=-1)
