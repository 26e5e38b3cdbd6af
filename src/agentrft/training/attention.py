"""Attention over a token tree, plugged into transformers by name; exact, nothing approximated.

Every token sees its root in one product for all branches, and its own branch row by row.
Shapes: as in `pack.py`, and G key-value heads, Q query heads per key-value head, D head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentrft.training.pack import MicroBatch

NAME = "agentrft_tree"


def register() -> None:
    """Make the attention known to transformers; doing it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _transformers_attention)


def _transformers_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    tree: MicroBatch,
    **_: object,
) -> tuple[Tensor, None]:
    out_HTD = tree_attention(query_1HTD[0], key_1GTD[0], value_1GTD[0], tree, scaling)
    return out_HTD.transpose(0, 1)[None], None


def tree_attention(
    query_HTD: Tensor, key_GTD: Tensor, value_GTD: Tensor, tree: MicroBatch, scaling: float
) -> Tensor:
    """Return attention output per head and token, each token looking at its ancestors and itself."""
    P = tree.root_tokens
    root_HPD = F.scaled_dot_product_attention(
        query_HTD[None, :, :P],
        key_GTD[None, :, :P],
        value_GTD[None, :, :P],
        is_causal=True,
        scale=scaling,
        enable_gqa=True,
    )[0]
    R, S = tree.query_RS.shape
    if R == 0:
        return root_HPD
    below_HUD = _branch_attention(query_HTD * scaling, key_GTD, value_GTD, tree, P, R, S)
    return torch.cat([root_HPD, below_HUD], dim=1)


def _branch_attention(
    query_HTD: Tensor, key_GTD: Tensor, value_GTD: Tensor, tree: MicroBatch, P: int, R: int, S: int
) -> Tensor:
    H, _, D = query_HTD.shape
    G = key_GTD.shape[0]
    Q = H // G
    K = tree.key_RK.shape[1]
    query_HND = query_HTD.index_select(1, tree.query_RS.flatten())
    key_GRKD = key_GTD.index_select(1, tree.key_RK.flatten()).view(G, R, K, D)
    value_GRKD = value_GTD.index_select(1, tree.key_RK.flatten()).view(G, R, K, D)
    root_scores = query_HND.view(G, Q * R * S, D) @ key_GTD[:, :P].transpose(1, 2)
    query_GRND = query_HND.view(G, Q, R, S, D).transpose(1, 2).reshape(G, R, Q * S, D)
    own_scores = (query_GRND @ key_GRKD.transpose(2, 3)).view(G, R, Q, S, K)
    hidden_RSK = ~tree.visible_RSK
    own_scores = own_scores.masked_fill(hidden_RSK[None, :, None], float("-inf"))
    scores = torch.cat([root_scores.view(G, Q, R, S, P).transpose(1, 2), own_scores], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query_HTD.dtype)
    out = weights[..., :P].transpose(1, 2).reshape(G, Q * R * S, P) @ value_GTD[:, :P]
    own_out = weights[..., P:].reshape(G, R, Q * S, K) @ value_GRKD
    own_out = own_out.view(G, R, Q, S, D).transpose(1, 2)
    out_HND = (out.view(G, Q, R, S, D) + own_out).reshape(H, R * S, D)
    return out_HND.index_select(1, tree.unpad_U)
