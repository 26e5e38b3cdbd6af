"""One forward pass over decode rows and prompt chunks together, reading and writing the cache.

Letters: N packed tokens, S decode rows, H query heads, K key-value heads, G queries
per key head, Q = G * L, L query positions, T key positions, D head size, E width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentrft.inference.embedded.attention import attend
from agentrft.inference.embedded.cache import Cache, Chunk, Trunk
from agentrft.inference.embedded.network import Elementwise, Network


@dataclass(frozen=True, slots=True)
class _Span:
    """Decode rows that lie side by side in the cache, and so are read as one view."""

    first: int
    """Its first row among the decode rows."""
    count: int
    row: int
    width: int
    """Longest own length."""
    mask_SQT: Tensor | None


@dataclass(frozen=True, slots=True)
class _Group:
    """Decode rows that lean on the same stretch of the same trunk."""

    trunk: Trunk
    leaning: int
    member_N: Tensor | None
    """Packed tokens; None means all that decode."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A chunk of several tokens."""

    first: int
    chunk: Chunk
    mask_1LT: Tensor


class Batch:
    """Plan of one pass. Decode chunks, all of one width, come first, ordered by row."""

    def __init__(self, cache: Cache, chunks: Sequence[Chunk], fused: Elementwise) -> None:
        self.cache = cache
        self._fused = fused
        self._like = cache.like
        decode = sorted((c for c in chunks if c.decodes), key=lambda c: c.row.index)
        prompts = [c for c in chunks if not c.decodes]
        self.chunks = [*decode, *prompts]
        """In packed order."""
        ids = np.concatenate([c.row.ids[c.start : c.stop] for c in self.chunks])
        positions = np.concatenate([np.arange(c.start, c.stop) for c in self.chunks])
        counts = [c.tokens for c in self.chunks]
        rows = np.repeat([c.row.index for c in self.chunks], counts)
        owns = positions - np.repeat([c.row.leaning for c in self.chunks], counts)
        heads = np.arange(cache.shape.kv_heads)
        slots = ((rows[:, None] * len(heads) + heads) * cache.positions + owns[:, None]).ravel()
        self.token_N = self._tensor(ids)
        self.position_N = self._tensor(positions)
        self.last_N = np.cumsum(counts) - 1
        """Packed position of each chunk's last token."""
        self._slot_NK = self._tensor(slots)
        self._width = decode[0].tokens if decode else 0
        self._decode = len(decode) * self._width
        self._spans = list(self._plan_spans(decode))
        self._groups = list(self._plan_groups(decode))
        self._prompts = self._plan_prompts(prompts)

    def run(self, network: Network) -> Tensor:
        """Return hidden_NE; afterwards the cache holds keys and values of every chunk."""
        return network.forward(self.token_N, self.position_N, self._attend)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._like.device, torch.int64)

    def _plan_spans(self, decode: list[Chunk]) -> list[_Span]:
        spans: list[_Span] = []
        first = 0
        for i in range(1, len(decode) + 1):
            if i < len(decode) and decode[i].row.index == decode[i - 1].row.index + 1:
                continue
            part = decode[first:i]
            starts = torch.tensor([c.start - c.row.leaning for c in part])
            width = int(starts.max()) + self._width
            seen = starts[:, None] + torch.arange(self._width)
            hidden = torch.arange(width) > seen[:, :, None]
            groups = self.cache.shape.heads // self.cache.shape.kv_heads
            mask = self._mask(hidden.repeat(1, groups, 1)) if bool(hidden.any()) else None
            spans.append(_Span(first, i - first, part[0].row.index, width, mask))
            first = i
        return spans

    def _plan_groups(self, decode: list[Chunk]) -> list[_Group]:
        members: dict[tuple[int, int], list[int]] = {}
        trunks: dict[int, Trunk] = {}
        for i, chunk in enumerate(decode):
            trunk = chunk.row.trunk
            if trunk is not None:
                trunks[id(trunk)] = trunk
                tokens = range(i * self._width, (i + 1) * self._width)
                members.setdefault((id(trunk), chunk.row.leaning), []).extend(tokens)
        return [
            _Group(
                trunks[trunk],
                leaning,
                None if len(indices) == self._decode else self._tensor(np.array(indices)),
            )
            for (trunk, leaning), indices in members.items()
        ]

    def _plan_prompts(self, prompts: list[Chunk]) -> list[_Prompt]:
        planned: list[_Prompt] = []
        first = self._decode
        for chunk in prompts:
            own_start, own_stop = chunk.start - chunk.row.leaning, chunk.stop - chunk.row.leaning
            hidden = torch.arange(own_stop) > torch.arange(own_start, own_stop)[:, None]
            planned.append(_Prompt(first, chunk, self._mask(hidden[None])))
            first += chunk.tokens
        return planned

    def _mask(self, hidden: Tensor) -> Tensor:
        zeros = torch.zeros(hidden.shape, dtype=self._like.dtype)
        return zeros.masked_fill_(hidden, -torch.inf).to(self._like.device)

    def _attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        keys_RKTD, values_RKTD = self.cache.keys[layer], self.cache.values[layer]
        self._fused.store((keys_RKTD, values_RKTD), self._slot_NK, (k_NKD, v_NKD))
        parts: list[Tensor] = []
        if self._decode:
            parts.append(self._attend_decode(layer, q_NHD[: self._decode]))
        for prompt in self._prompts:
            q_LHD = q_NHD[prompt.first : prompt.first + prompt.chunk.tokens]
            parts.append(self._attend_prompt(layer, q_LHD, prompt))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_decode(self, layer: int, q_NHD: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        lses: list[Tensor] = []
        # The queries of a key head stand in line, so that its keys are read once for all of them.
        q_NKGD = self._by_key_head(q_NHD)
        q_SKQD = q_NKGD.unflatten(0, (-1, self._width)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        for span in self._spans:
            rows = slice(span.row, span.row + span.count)
            output_SKQD, lse_SKQ = attend(
                q_SKQD[span.first : span.first + span.count],
                self.cache.keys[layer][rows, :, : span.width],
                self.cache.values[layer][rows, :, : span.width],
                span.mask_SQT,
            )
            output_SKGLD = output_SKQD.unflatten(2, (-1, self._width))
            outputs.append(output_SKGLD.permute(0, 3, 1, 2, 4).flatten(0, 1))
            lse_SKGL = lse_SKQ.unflatten(2, (-1, self._width))
            lses.append(lse_SKGL.permute(0, 3, 1, 2).flatten(0, 1))
        output_NKGD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        lse_NKG = lses[0] if len(lses) == 1 else torch.cat(lses)
        for group in self._groups:
            member_N = group.member_N
            whole = member_N is None
            shared_NKGD, lse_shared_NKG = self._attend_trunk(
                layer, q_NKGD if whole else q_NKGD[member_N], group.trunk, group.leaning
            )
            merged_NKGD = self._fused.merge(
                shared_NKGD,
                lse_shared_NKG,
                output_NKGD if whole else output_NKGD[member_N],
                lse_NKG if whole else lse_NKG[member_N],
            )
            if whole:
                return merged_NKGD
            output_NKGD[member_N] = merged_NKGD
        return output_NKGD

    def _by_key_head(self, q_NHD: Tensor) -> Tensor:
        return q_NHD.unflatten(1, (self.cache.shape.kv_heads, -1))

    def _attend_trunk(
        self, layer: int, q_LKGD: Tensor, trunk: Trunk, leaning: int
    ) -> tuple[Tensor, Tensor]:
        """Return output_LKGD and its log-sum-exp_LKG; every query sees the whole stretch."""
        # The queries of a key head stand in line as one: the shared keys are read once for all.
        output_1KQD, lse_1KQ = attend(
            q_LKGD.transpose(0, 1).flatten(1, 2).unsqueeze(0),
            trunk.keys[layer, None, :, :leaning],
            trunk.values[layer, None, :, :leaning],
        )
        count = len(q_LKGD)
        return (
            output_1KQD[0].unflatten(1, (count, -1)).transpose(0, 1),
            lse_1KQ[0].unflatten(1, (count, -1)).transpose(0, 1),
        )

    def _attend_prompt(self, layer: int, q_LHD: Tensor, prompt: _Prompt) -> Tensor:
        row = prompt.chunk.row
        own = slice(0, prompt.chunk.stop - row.leaning)
        output_1HLD, lse_1HL = attend(
            q_LHD.transpose(0, 1).unsqueeze(0),
            self.cache.keys[layer][row.index, None, :, own],
            self.cache.values[layer][row.index, None, :, own],
            prompt.mask_1LT,
        )
        output_LKGD = self._by_key_head(output_1HLD[0].transpose(0, 1))
        if row.trunk is None:
            return output_LKGD
        shared_LKGD, lse_shared_LKG = self._attend_trunk(
            layer, self._by_key_head(q_LHD), row.trunk, row.leaning
        )
        lse_LKG = self._by_key_head(lse_1HL[0].T)
        return self._fused.merge(shared_LKGD, lse_shared_LKG, output_LKGD, lse_LKG)


def forward_alone(network: Network, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return hidden_NE of whole sequences packed one after another, leaving the cache alone."""
    lengths = [len(s) for s in sequences]
    device = network.device
    token_N = torch.tensor([i for s in sequences for i in s], device=device)
    position_N = torch.cat([torch.arange(n, device=device) for n in lengths])
    masks = {
        n: torch.full((1, n, n), -torch.inf, dtype=network.dtype, device=device).triu_(1)
        for n in set(lengths)
    }

    def attend_alone(layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        del layer
        parts = zip(q_NHD.split(lengths), k_NKD.split(lengths), v_NKD.split(lengths), strict=True)
        outputs = [
            attend(
                q.transpose(0, 1).unsqueeze(0),
                k.transpose(0, 1).unsqueeze(0),
                v.transpose(0, 1).unsqueeze(0),
                masks[len(q)],
            )[0][0].transpose(0, 1)
            for q, k, v in parts
        ]
        return torch.cat(outputs)

    return network.forward(token_N, position_N, attend_alone)
