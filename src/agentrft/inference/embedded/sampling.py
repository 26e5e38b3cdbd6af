"""From logits to tokens: counter-based uniforms, inverse CDF, log-probabilities.

Letters: S sequences, V vocabulary, B blocks of the vocabulary, C entries of a block.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentrft.core.errors import SamplerError

_BLOCK = 256
_NUCLEUS = 512
_ROWS = 8
"""Rows treated together on a CPU: few enough that their probabilities stay in its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likely:
    """What the model itself held likely at a position: temperature 1, all tokens, in nats."""

    logprob: float
    """Of the token that was drawn."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens, best first."""


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that draws token `position` of a request; 53 random bits."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw(
    logits_SV: Tensor,
    *,
    temperatures: Sequence[float],
    top_ps: Sequence[float],
    uniforms: Sequence[float],
) -> tuple[list[int], list[float]]:
    """Return a token per row and its log-probability under the distribution it was drawn from.

    The distribution is softmax(logits / temperature) cut to the smallest set of tokens that holds
    `top_p` of the mass, renormalised. At temperature 0
    the token is the argmax, whose own distribution is a point mass, so the log-probability
    reported is that of temperature 1. Tokens are drawn by inverse CDF in vocabulary order.
    Raises SamplerError for logits that are not numbers.
    """
    tokens: list[int] = []
    logprobs: list[float] = []
    rows = _ROWS if logits_SV.device.type == "cpu" else len(logits_SV)
    for first in range(0, len(logits_SV), rows):
        part = slice(first, first + rows)
        token_S, logprob_S = _draw_rows(
            logits_SV[part], temperatures[part], top_ps[part], uniforms[part]
        )
        tokens += token_S.tolist()
        logprobs += logprob_S.tolist()
    return tokens, logprobs


def likely(logits_SV: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[Likely]:
    """Return for each row the log-probability of its token and those of its `count` likeliest."""
    logprob_SV = logits_SV.log_softmax(-1, dtype=torch.float32)
    token_S1 = torch.tensor(tokens, device=logits_SV.device)[:, None]
    drawn = logprob_SV.gather(1, token_S1)[:, 0].tolist()
    top_SC, index_SC = logprob_SV.topk(max(counts), dim=-1)
    tops = zip(index_SC.tolist(), top_SC.tolist(), strict=True)
    return [
        Likely(logprob=logprob, top=tuple(zip(index[:count], top[:count], strict=True)))
        for logprob, (index, top), count in zip(drawn, tops, counts, strict=True)
    ]


def likely_where_asked(
    logits_SV: Tensor, tokens: Sequence[int], counts: Sequence[int | None]
) -> list[Likely | None]:
    """Return what `likely` does for rows that ask for so many; those that do not cost nothing."""
    result: list[Likely | None] = [None] * len(tokens)
    asking = {row: count for row, count in enumerate(counts) if count is not None}
    if asking:
        rows = list(asking)
        found = likely(logits_SV[rows], [tokens[row] for row in rows], list(asking.values()))
        for row, one in zip(rows, found, strict=True):
            result[row] = one
    return result


def _draw_rows(
    logits_SV: Tensor,
    temperatures: Sequence[float],
    top_ps: Sequence[float],
    uniforms: Sequence[float],
) -> tuple[Tensor, Tensor]:
    greedy = [t == 0 for t in temperatures]
    device = logits_SV.device
    scaled_SV = logits_SV
    if any(t not in (0, 1) for t in temperatures):
        scale = [1.0 if t == 0 else 1 / t for t in temperatures]
        scaled_SV = logits_SV.float() * torch.tensor(scale, device=device)[:, None]
    mass_SV = scaled_SV.softmax(-1, dtype=torch.float32)
    cut = [i for i, p in enumerate(top_ps) if p < 1 and not greedy[i]]
    if cut:
        mass_SV[cut] = _nucleus(mass_SV[cut], [top_ps[i] for i in cut])
    u_S = torch.tensor(uniforms, dtype=torch.float64, device=device)
    token_S, total_S = _inverse_cdf(mass_SV, u_S)
    if not bool(total_S.isfinite().all()):
        raise SamplerError("the model's logits are not finite; its weights are broken or diverged")
    if any(greedy):
        token_S = torch.where(torch.tensor(greedy, device=device), logits_SV.argmax(-1), token_S)
    chosen_S = mass_SV.gather(1, token_S[:, None])[:, 0].double()
    return token_S, (chosen_S / total_S).log_().clamp_(max=0.0)


def _inverse_cdf(mass_SV: Tensor, u_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token at which the running mass passes u * total, and the total.

    Two levels (block sums, then one block) instead of a scan over the vocabulary; sums are float64
    so that 50k float32 terms lose nothing. A token of mass zero is never returned.
    """
    size = mass_SV.shape[-1]
    if size % _BLOCK:
        mass_SV = torch.nn.functional.pad(mass_SV, (0, -size % _BLOCK))
    mass_SBC = mass_SV.unflatten(-1, (-1, _BLOCK))
    upto_SB = mass_SBC.sum(-1).double().cumsum(-1)
    total_S = upto_SB[:, -1]
    target_S = torch.minimum(u_S * total_S, total_S * (1 - 2.0**-52))
    block_S = (upto_SB <= target_S[:, None]).sum(-1)
    before_SB = torch.nn.functional.pad(upto_SB, (1, 0))
    rest_S = target_S - before_SB.gather(1, block_S[:, None])[:, 0]
    row_S = torch.arange(len(u_S), device=u_S.device)
    upto_SC = mass_SBC[row_S, block_S].double().cumsum(-1)
    # A block's float32 sum may exceed its float64 scan by rounding; stay inside the block.
    rest_S = torch.minimum(rest_S, upto_SC[:, -1] * (1 - 2.0**-52))
    within_S = (upto_SC <= rest_S[:, None]).sum(-1)
    return block_S * _BLOCK + within_S, total_S


def _nucleus(mass_SV: Tensor, top_ps: Sequence[float]) -> Tensor:
    """Zero everything outside the smallest set of most likely tokens that holds `top_p`."""
    p_S1 = torch.tensor(top_ps, dtype=torch.float64, device=mass_SV.device)[:, None]
    wanted_S1 = p_S1 * mass_SV.sum(-1, keepdim=True, dtype=torch.float64)
    # Nearly always a few hundred tokens hold the nucleus; sort everything only if they do not.
    count = min(_NUCLEUS, mass_SV.shape[-1])
    while True:
        top_SC, index_SC = mass_SV.topk(count, dim=-1)
        upto_SC = top_SC.double().cumsum(-1)
        if count == mass_SV.shape[-1] or bool((upto_SC[:, -1:] >= wanted_S1).all()):
            break
        count = mass_SV.shape[-1]
    inside_SC = upto_SC - top_SC < wanted_S1
    kept_SC = torch.where(inside_SC, top_SC, 0.0)
    return torch.zeros_like(mass_SV).scatter_(1, index_SC, kept_SC)
