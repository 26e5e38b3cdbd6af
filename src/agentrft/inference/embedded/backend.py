"""What the engine schedules: a book of cached rows and a model that computes chunks of them.

Letters: S sequences, N packed tokens, E width, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from agentrft.core.config import EngineConfig
from agentrft.inference.embedded.batch import Batch, forward_alone
from agentrft.inference.embedded.cache import Cache, Chunk, Ids, Match, Row
from agentrft.inference.embedded.device import choose_device, choose_dtype, memory_beside
from agentrft.inference.embedded.network import open_network
from agentrft.inference.embedded.shape import read_shape

_SCORE_TOKENS = 2048
_SCORE_LOGITS = 512
_SOFTMAX_ROWS = 16


class Book(Protocol):
    """Who holds which tokens; `Cache` says what each method means."""

    @property
    def has_room(self) -> bool: ...
    def match(self, ids: Ids) -> Match: ...
    def take(self, ids: Ids, match: Match) -> Row: ...
    def release(self, row: Row) -> None: ...
    def reserve(self, chunks: Iterable[Chunk]) -> None: ...
    def clear(self) -> None: ...


class Backend(Protocol):
    """One model on one device. Only the engine's own threads call it."""

    @property
    def book(self) -> Book: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def rewinds(self) -> bool:
        """Whether computed tokens can be taken back, so that guesses may be tried."""
        ...

    def share(self, chunks: list[Chunk], lanes: int) -> list[list[Chunk]]:
        """Split a step into at most so many parts, each of which can be computed by itself."""
        ...

    def compute(self, chunks: Sequence[Chunk]) -> tuple[list[Chunk], Tensor]:
        """Compute the chunks; return those that end, and logits_SV for drawing after them.

        A chunk with guesses has a row of logits after its last known token and after each guess.
        """
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities (temperature 1) of every token after the first."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy weights into place; raises SamplerError before anything changed."""
        ...


class FusedBackend:
    """Llama-shaped models: fused projections, shared prefixes, one pass for all rows."""

    def __init__(self, folder: Path, config: EngineConfig, max_context_tokens: int) -> None:
        shape = read_shape(folder, max_context_tokens=max_context_tokens)
        device = choose_device(config.device)
        dtype = choose_dtype(config.dtype, device)
        # A packed head of a tied model stands beside its embedding.
        numbers = shape.parameters + shape.vocabulary * shape.width
        left_bytes = memory_beside(numbers * dtype.itemsize, folder, device)
        self.network = open_network(folder, shape, device=device, dtype=dtype)
        self.book = Cache(
            shape=shape,
            like=torch.empty(0, device=device, dtype=dtype),
            max_rows=config.max_sequences + (config.cached_sequences or config.max_sequences),
            max_context_tokens=max_context_tokens,
            max_bytes=left_bytes // 2,
        )
        self.vocabulary = shape.vocabulary
        self.rewinds = True

    def share(self, chunks: list[Chunk], lanes: int) -> list[list[Chunk]]:
        if self.network.device.type != "cpu" or lanes == 1:
            return [chunks]
        decode = sorted((c for c in chunks if c.decodes), key=lambda c: c.row.index)
        prompts = sorted((c for c in chunks if not c.decodes), key=lambda c: -c.tokens)
        # Neighbouring rows stay together: they are read as one view of the cache.
        parts = [
            decode[len(decode) * i // lanes : len(decode) * (i + 1) // lanes] for i in range(lanes)
        ]
        for chunk in prompts:
            min(parts, key=lambda part: sum(c.tokens for c in part)).append(chunk)
        return [part for part in parts if part]

    def compute(self, chunks: Sequence[Chunk]) -> tuple[list[Chunk], Tensor]:
        batch = Batch(self.book, chunks, self.network.elementwise)
        hidden_NE = batch.run(self.network)
        ended: list[Chunk] = []
        wanted: list[int] = []
        for chunk, last in zip(batch.chunks, batch.last_N.tolist(), strict=True):
            if chunk.ends:
                ended.append(chunk)
                wanted += range(last - chunk.drafts, last + 1)
        if not ended:
            return [], hidden_NE.new_empty(0, self.vocabulary)
        return ended, self.network.logits(hidden_NE[wanted])

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        scores: list[list[float]] = []
        batch: list[Sequence[int]] = []
        for sequence in sequences:
            if batch and sum(map(len, batch)) + len(sequence) > _SCORE_TOKENS:
                scores += self._score_together(batch)
                batch = []
            batch.append(sequence)
        return scores + self._score_together(batch) if batch else scores

    def _score_together(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        hidden_NE = forward_alone(self.network, sequences)
        lengths = [len(s) for s in sequences]
        targets = [i for s in sequences for i in (*s[1:], 0)]
        target_N = torch.tensor(targets, device=hidden_NE.device)
        logprobs: list[float] = []
        for h_NE, t_N in zip(
            hidden_NE.split(_SCORE_LOGITS), target_N.split(_SCORE_LOGITS), strict=True
        ):
            # The product wants many rows; the softmax wants so few that they stay in the cache.
            for part_NV, ids_N in zip(
                self.network.logits(h_NE).split(_SOFTMAX_ROWS),
                t_N.split(_SOFTMAX_ROWS),
                strict=True,
            ):
                all_NV = part_NV.log_softmax(-1, dtype=torch.float32)
                logprobs += all_NV.gather(1, ids_N[:, None])[:, 0].tolist()
        ends = np.cumsum(lengths)
        return [logprobs[end - n : end - 1] for n, end in zip(lengths, ends, strict=True)]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load(tensors)
