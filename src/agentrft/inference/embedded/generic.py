"""Any causal language model of transformers, one sequence at a time: correct before fast.

A row's cache is whatever object the architecture keeps, so it can only go on where it stopped:
prefixes are reused across the turns of a conversation, not across conversations.
Letters: S sequences, T positions, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentrft.core.config import EngineConfig
from agentrft.core.errors import ModelError, SamplerError, boundary
from agentrft.inference.embedded.cache import Chunk, Ids, Match, Row
from agentrft.inference.embedded.device import choose_device, choose_dtype, memory_beside
from agentrft.inference.embedded.shape import read_config


@dataclass(slots=True)
class ConversationBook:
    """Rows that can only be continued whole."""

    max_rows: int
    max_context_tokens: int
    rows: list[Row] = field(default_factory=list[Row])
    states: dict[int, Any] = field(default_factory=dict[int, Any])
    """Row index to the architecture's own cache."""
    _clock: int = 0

    @property
    def has_room(self) -> bool:
        return len(self.rows) < self.max_rows or any(not row.busy for row in self.rows)

    def match(self, ids: Ids) -> Match:
        best = Match()
        for row in self.rows:
            known = row.ids[: row.computed]
            usable = not row.busy and best.ready < row.computed < len(ids)
            if usable and np.array_equal(known, ids[: row.computed]):
                best = Match(source=row, ready=row.computed, promised=row.computed)
        return best

    def take(self, ids: Ids, match: Match) -> Row:
        row = match.source if isinstance(match.source, Row) else self._free_row()
        row.ids[: len(ids)] = ids
        row.length, row.computed, row.busy = len(ids), match.ready, True
        return row

    def _free_row(self) -> Row:
        if len(self.rows) < self.max_rows:
            empty = np.zeros(self.max_context_tokens, np.int64)
            self.rows.append(Row(index=len(self.rows), ids=empty))
            return self.rows[-1]
        row = min((row for row in self.rows if not row.busy), key=lambda row: row.last_used)
        self.states.pop(row.index, None)
        return row

    def release(self, row: Row) -> None:
        self._clock += 1
        row.busy, row.length, row.last_used = False, row.computed, self._clock

    def reserve(self, chunks: Iterable[Chunk]) -> None:
        """Nothing to do: the architecture's cache grows by itself."""

    def clear(self) -> None:
        self.rows.clear()
        self.states.clear()


class TransformersBackend:
    """The model as transformers runs it."""

    def __init__(self, folder: Path, config: EngineConfig, max_context_tokens: int) -> None:
        from transformers import AutoModelForCausalLM

        known = read_config(folder)
        limit = known.get("max_position_embeddings", known.get("n_positions"))
        if isinstance(limit, int) and max_context_tokens > limit:
            raise ModelError(
                f"max_context_tokens is {max_context_tokens} but model {str(folder)!r} was made "
                f"for {limit}; lower it"
            )
        device = choose_device(config.device)
        files = [path.stat().st_size for path in folder.glob("*.safetensors")]
        memory_beside(sum(files), folder, device)
        with boundary(ModelError, f"transformers cannot open {str(folder)!r}"):
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=choose_dtype(config.dtype, device), local_files_only=True
            )
        self.model = model.to(device).eval()
        self._device = device
        self.vocabulary: int = self.model.get_input_embeddings().weight.shape[0]
        self.rewinds = False
        self.book = ConversationBook(
            max_rows=config.max_sequences + (config.cached_sequences or config.max_sequences),
            max_context_tokens=max_context_tokens,
        )

    def share(self, chunks: list[Chunk], lanes: int) -> list[list[Chunk]]:
        return [chunks]

    def compute(self, chunks: Sequence[Chunk]) -> tuple[list[Chunk], Tensor]:
        ended: list[Chunk] = []
        logits: list[Tensor] = []
        for chunk in chunks:
            row = chunk.row
            # A row that starts over must not go on from what an earlier one left behind.
            state = self.book.states.get(row.index) if chunk.start else None
            output = self.model(
                input_ids=self._tensor(row.ids[None, chunk.start : chunk.stop]),
                past_key_values=state,
                use_cache=True,
            )
            self.book.states[row.index] = output.past_key_values
            if chunk.ends:
                ended.append(chunk)
                logits.append(output.logits[0, -1])
        empty = torch.empty(0, self.vocabulary, device=self._device)
        return ended, torch.stack(logits) if logits else empty

    def _tensor(self, ids: Ids) -> Tensor:
        return torch.from_numpy(ids).to(self._device)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        scores: list[list[float]] = []
        for sequence in sequences:
            ids_1T = torch.tensor([sequence], device=self._device)
            logits_TV = self.model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
            chosen_T = logits_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
            scores.append((chosen_T - logits_TV.logsumexp(-1)).tolist())
        return scores

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        own: dict[str, Tensor] = self.model.state_dict()
        for name, tensor in tensors.items():
            if name not in own:
                raise SamplerError(f"weights hold {name!r}, which the model lacks")
            if tensor.shape != own[name].shape:
                raise SamplerError(
                    f"weights {name!r} have shape {tuple(tensor.shape)}, the model "
                    f"{tuple(own[name].shape)}"
                )
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
