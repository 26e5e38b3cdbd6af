"""Keys and values of every sequence: rows for own tokens, trunks for prefixes many rows share.

A row knows which tokens it holds, busy or idle; idle rows are evicted least recently used first.
A trunk is computed once, read by all rows that lean on it, and never written again.

Letters: L layers, R rows, K key-value heads, T positions of a row, D head size, N packed tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentrft.core.errors import SamplerError
from agentrft.inference.embedded.pages import Pages
from agentrft.inference.embedded.shape import Shape

Ids = NDArray[np.int64]

_FIRST_POSITIONS = 192
_FIRST_ROWS = 16
_TRUNK_STEP = 32
"""Trunk lengths are multiples of this, so that chance agreement does not split groups."""
_TRUNK_LEAST = 64
_TRUNK_DEEPER = 256
"""A row that leans on a trunk gets one of its own from so many more shared tokens on."""
_TRUNKS = 64
"""Each costs every layer of a step some calls, so not more whatever the memory."""
_KEPT_FACTOR = 2.0
"""Taking a page anew costs more than writing it, and the next weights' rollouts are like the last."""
SLACK = 8
"""Positions beyond the context that guesses may touch."""


@dataclass(slots=True, eq=False)
class Trunk:
    """A shared prefix; `keys` and `values` are LKTD."""

    ids: Ids
    keys: Tensor
    values: Tensor
    last_used: int = 0


@dataclass(slots=True, eq=False)
class Row:
    """One sequence's place: positions below `leaning` are the trunk's, the rest its own."""

    index: int
    ids: Ids
    """Token ids from position 0; only the first `length` count."""
    length: int = 0
    computed: int = 0
    """Positions whose keys and values are in place."""
    trunk: Trunk | None = None
    leaning: int = 0
    busy: bool = False
    last_used: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a row to compute: positions `start` to `stop`."""

    row: Row
    start: int
    stop: int
    drafts: int = 0
    """How many of the last tokens are guesses, beyond what the row knows."""
    decodes: bool = False
    """Whether the row waits for its next token; otherwise this is a piece of its prompt."""

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def guesses(self) -> list[int]:
        return self.row.ids[self.stop - self.drafts : self.stop].tolist()

    @property
    def ends(self) -> bool:
        """Whether the row's known tokens end here, so that the next can be drawn."""
        return self.stop - self.drafts == self.row.length


@dataclass(slots=True)
class Match:
    """The best source of a prefix: tokens it has now, and will have when its prefill is done."""

    source: Row | Trunk | None = None
    ready: int = 0
    promised: int = 0


@dataclass(slots=True)
class Cache:
    """Tensors and the book over them; grows as needed."""

    shape: Shape
    like: Tensor
    max_rows: int
    max_context_tokens: int
    max_bytes: int
    """Of rows if all were full; trunks may take a quarter of that on top."""
    rows: list[Row] = field(default_factory=list[Row])
    trunks: list[Trunk] = field(default_factory=list[Trunk])
    keys: list[Tensor] = field(default_factory=list[Tensor])
    """Per layer RKTD."""
    values: list[Tensor] = field(default_factory=list[Tensor])
    _pages: list[Pages] = field(default_factory=list[Pages])
    """Under keys, then values."""
    _written: dict[int, int] = field(default_factory=dict[int, int])
    """Row to the positions it has taken memory for."""
    _clock: int = 0

    def clear(self) -> None:
        """Forget every token; rows must be idle.

        Memory that was written goes back to the system, unless what was held lately needs most of it.
        """
        held = sum(row.computed - row.leaning for row in self.rows)
        written = sum(self._written.values())
        self.trunks.clear()
        for row in self.rows:
            row.length = row.computed = row.leaning = 0
            row.trunk, row.busy = None, False
        if written > _KEPT_FACTOR * held:
            self._written.clear()
            for pages in self._pages:
                pages.clear()

    @property
    def positions(self) -> int:
        """Own positions a row can hold without growing."""
        return self.keys[0].shape[2] if self.keys else 0

    def match(self, ids: Ids) -> Match:
        """Find who holds the longest prefix of `ids`, leaving at least the last one to compute."""
        best = Match()
        limit = len(ids) - 1
        for row in self.rows:
            if not row.length:
                continue
            common = min(_common_prefix(row.ids[: row.length], ids), limit)
            best.promised = max(best.promised, common if row.busy else min(common, row.computed))
            ready = min(common, row.computed)
            # Between equals the whole row wins: it can go on in place.
            if ready > best.ready or (ready == best.ready > 0 and ready == row.computed):
                best.source, best.ready = row, ready
        for trunk in self.trunks:
            common = min(_common_prefix(trunk.ids, ids), limit)
            if common > best.ready:
                best.source, best.ready = trunk, common
        return best

    def take(self, ids: Ids, match: Match) -> Row:
        """Return a busy row that holds `ids` with the matched prefix computed."""
        source, ready = match.source, match.ready
        if isinstance(source, Row) and not source.busy and ready == source.computed:
            row = source
        else:
            if isinstance(source, Row):
                self._grow_trunk(source, ready)
            row = self._free_row(avoid=source)
            self._copy_prefix(row, source, ready)
        row.ids[: len(ids)] = ids
        row.length, row.computed, row.busy = len(ids), ready, True
        self._touch(row)
        return row

    def release(self, row: Row) -> None:
        """Keep what the row computed for whoever comes back."""
        row.busy, row.length = False, row.computed
        self._touch(row)

    def reserve(self, chunks: Iterable[Chunk]) -> None:
        """Make room for what will be computed; idle rows may have to go."""
        owns = [(c.row, c.stop - c.row.leaning) for c in chunks]
        self._make_room(max((own for _, own in owns), default=0))
        for row, own in owns:
            self._written[row.index] = max(own, self._written.get(row.index, 0))

    @property
    def has_room(self) -> bool:
        """Whether another sequence can have a row now."""
        return any(not row.busy for row in self.rows) or self._rows_to_add() > 0

    def _touch(self, row: Row) -> None:
        self._clock += 1
        row.last_used = self._clock
        if row.trunk is not None:
            row.trunk.last_used = self._clock

    def _free_row(self, avoid: Row | Trunk | None) -> Row:
        idle = [row for row in self.rows if not row.busy]
        empty = next((row for row in idle if not row.computed), None)
        if empty is not None:
            return empty
        added = self._rows_to_add()
        if added:
            count = len(self.rows)
            self._rebuild(self.rows, count + added, self.positions or _FIRST_POSITIONS)
            return self.rows[count]
        victims = [row for row in idle if row is not avoid] or idle
        return min(victims, key=lambda row: row.last_used)

    def _rows_to_add(self) -> int:
        """Twice as many as there are, as far as count and memory allow."""
        count = len(self.rows)
        fitting = self.max_bytes // self._row_bytes(self.positions or _FIRST_POSITIONS)
        return max(0, min(max(_FIRST_ROWS, count), min(self.max_rows, fitting) - count))

    def _row_bytes(self, positions: int) -> int:
        shape = self.shape
        heads = 2 * shape.layers * shape.kv_heads
        return heads * shape.head_dim * positions * self.like.element_size()

    def _make_room(self, own_tokens: int, keep: Sequence[Row | Trunk | None] = ()) -> None:
        if own_tokens <= self.positions:
            return
        # A quarter more than asked, in whole blocks, so that decoding rarely copies the cache.
        generous = max(-(-own_tokens * 5 // 4 // 64) * 64, _FIRST_POSITIONS)
        positions = max(own_tokens, min(generous, self.max_context_tokens))
        needed = [row for row in self.rows if row.busy or row in keep]
        fitting = self.max_bytes // self._row_bytes(positions)
        if fitting < len(needed):
            total = len(needed) * self._row_bytes(positions)
            raise SamplerError(
                f"{len(needed)} sequences of up to {own_tokens} tokens need a cache of "
                f"{total / 1e9:.1f} GB, {self.max_bytes / 1e9:.1f} GB are free for it; lower "
                f"engine.max_sequences or limits.max_context_tokens"
            )
        spare = sorted((r for r in self.rows if r not in needed), key=lambda r: -r.last_used)
        kept = [*needed, *spare[: fitting - len(needed)]]
        kept.sort(key=lambda row: row.index)
        self._rebuild(kept, len(kept), positions)

    def _rebuild(self, kept: list[Row], count: int, positions: int) -> None:
        """Move the kept rows into tensors of another size; the first of them keep their order."""
        shape = self.shape
        size = (count, shape.kv_heads, positions, shape.head_dim)
        # Zeros, because masked positions still meet the arithmetic and 0 * NaN is NaN.
        for number, tensors in enumerate((self.keys, self.values)):
            for layer in range(shape.layers):
                grown = Pages(size, self.like)
                for i, row in enumerate(kept):
                    own = slice(0, row.computed - row.leaning)
                    grown.tensor[i, :, own] = tensors[layer][row.index, :, own]
                place = number * shape.layers + layer
                self._pages[place : place + 1] = [grown]
                tensors[layer : layer + 1] = [grown.tensor]
        self._written = {i: row.computed - row.leaning for i, row in enumerate(kept)}
        for i, row in enumerate(kept):
            row.index = i
        fresh = range(len(kept), count)
        self.rows = [
            *kept,
            *(Row(index=i, ids=np.zeros(self.max_context_tokens + SLACK, np.int64)) for i in fresh),
        ]

    def _copy_prefix(self, row: Row, source: Row | Trunk | None, ready: int) -> None:
        if isinstance(source, Row):
            trunk, leaning = source.trunk, source.leaning
        else:
            trunk, leaning = source, ready
        shared = leaning
        if leaning > ready or isinstance(source, Trunk):
            shared = min(ready, leaning) // _TRUNK_STEP * _TRUNK_STEP
            shared = shared if shared >= _TRUNK_LEAST else 0
        self._make_room(ready - shared, keep=(row, source))
        stop = min(leaning, ready)
        for layer in range(self.shape.layers):
            for own, below in (
                (self.keys[layer], trunk.keys if trunk else None),
                (self.values[layer], trunk.values if trunk else None),
            ):
                parts: list[Tensor] = []
                if below is not None and shared < stop:
                    parts.append(below[layer, :, shared:stop])
                if isinstance(source, Row) and leaning < ready:
                    parts.append(own[source.index, :, : ready - leaning])
                if parts:
                    # cat copies, so the row may be its own source.
                    own[row.index, :, : ready - shared] = torch.cat(parts, 1)
        row.trunk, row.leaning = (trunk, shared) if shared else (None, 0)

    def _grow_trunk(self, source: Row, ready: int) -> None:
        """Turn the prefix somebody else now wants from `source` into a trunk under it."""
        size, leaning, below = ready // _TRUNK_STEP * _TRUNK_STEP, source.leaning, source.trunk
        if size - leaning < (_TRUNK_LEAST if below is None else _TRUNK_DEEPER):
            return
        if not self._trunk_space(size):
            return
        take = slice(0, size - leaning)

        def whole(owns: Sequence[Tensor], shared: Tensor | None) -> Tensor:
            own_LKTD = torch.stack([own[source.index, :, take] for own in owns])
            return own_LKTD if shared is None else torch.cat([shared[:, :, :leaning], own_LKTD], 2)

        trunk = Trunk(
            ids=source.ids[:size].copy(),
            keys=whole(self.keys, below.keys if below else None),
            values=whole(self.values, below.values if below else None),
        )
        rest = source.computed - size
        for tensor in (*self.keys, *self.values):
            own = tensor[source.index]
            own[:, :rest] = own[:, take.stop : take.stop + rest].clone()
        source.trunk, source.leaning = trunk, size
        self.trunks.append(trunk)
        self._touch(source)

    def _trunk_space(self, tokens: int) -> bool:
        """Make room for a trunk of so many tokens, if need be by dropping some nobody leans on."""
        used = {id(row.trunk) for row in self.rows}
        idle = sorted((t for t in self.trunks if id(t) not in used), key=lambda t: -t.last_used)
        while True:
            held = sum(len(trunk.ids) for trunk in self.trunks) + tokens
            if len(self.trunks) < _TRUNKS and self._row_bytes(held) <= self.max_bytes // 4:
                return True
            if not idle:
                return False
            self.trunks.remove(idle.pop())


def _common_prefix(a: Ids, b: Ids) -> int:
    size = min(len(a), len(b))
    different = a[:size] != b[:size]
    first = int(different.argmax()) if size else 0
    return first if size and different[first] else size
