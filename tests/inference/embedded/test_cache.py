"""The book over cached tokens: who holds what, and what happens when memory is short."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agentrft.core.errors import SamplerError
from agentrft.inference.embedded.cache import Cache, Chunk, Row
from agentrft.inference.embedded.shape import Rope, Shape

SHAPE = Shape(
    family="llama",
    vocabulary=1000,
    width=8,
    feed_forward=8,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    norm_eps=1e-6,
    rope=Rope(theta=1e4),
    context_tokens=4096,
    tied=True,
    qkv_bias=False,
    output_bias=False,
    feed_forward_bias=False,
    head_norm=False,
)
POSITION_BYTES = 2 * 2 * 4 * 4


def make_cache(max_rows: int = 8, max_bytes: int = 1 << 30) -> Cache:
    return Cache(
        shape=SHAPE,
        like=torch.empty(0),
        max_rows=max_rows,
        max_context_tokens=2048,
        max_bytes=max_bytes,
    )


def ids(*parts: range) -> NDArray[np.int64]:
    return np.concatenate([np.array(part, np.int64) for part in parts])


def fill(cache: Cache, row: Row) -> None:
    """Stand in for the network: the key of a token is its id."""
    cache.reserve([Chunk(row, row.computed, row.length)])
    for position in range(row.computed, row.length):
        own = position - row.leaning
        for layer in range(SHAPE.layers):
            cache.keys[layer][row.index, :, own] = float(row.ids[position]) + layer
            cache.values[layer][row.index, :, own] = -float(row.ids[position]) - layer
    row.computed = row.length


def held(cache: Cache, row: Row) -> list[float]:
    """Keys of the row as attention reads them: the trunk's stretch, then its own."""
    for layer in range(SHAPE.layers):
        own = slice(0, row.computed - row.leaning)
        keys = [cache.keys[layer][row.index, 0, own, 0]]
        values = [cache.values[layer][row.index, 0, own, 3]]
        if row.trunk is not None:
            keys.insert(0, row.trunk.keys[layer, 0, : row.leaning, 0])
            values.insert(0, row.trunk.values[layer, 0, : row.leaning, 3])
        assert torch.equal(torch.cat(keys), -torch.cat(values))
        assert (torch.cat(keys) - layer).tolist() == row.ids[: row.computed].tolist()
    return row.ids[: row.computed].tolist()


def take(cache: Cache, tokens: NDArray[np.int64]) -> tuple[Row, int]:
    match = cache.match(tokens)
    row = cache.take(tokens, match)
    assert held(cache, row) == tokens[: match.ready].tolist()
    fill(cache, row)
    return row, match.ready


def test_every_kind_of_prefix_is_found_and_intact() -> None:
    cache = make_cache()
    first, ready = take(cache, ids(range(100), range(200, 250)))
    assert (ready, first.trunk) == (0, None)
    # A busy row is copied from; what both share becomes a trunk under both.
    second, ready = take(cache, ids(range(100), range(300, 340)))
    assert (ready, first.leaning, second.leaning) == (100, 96, 96)
    assert first.trunk is second.trunk is cache.trunks[0]
    # Shorter agreement leans on less of the same trunk, or on nothing below the least length.
    third, ready = take(cache, ids(range(70), range(400, 410)))
    assert (ready, third.leaning) == (70, 64)
    fourth, ready = take(cache, ids(range(40), range(500, 510)))
    assert (ready, fourth.leaning) == (40, 0)
    for row in (first, second, third, fourth):
        held(cache, row)


def test_an_idle_row_goes_on_in_place_but_is_not_cut_for_a_sibling() -> None:
    cache = make_cache()
    row, _ = take(cache, ids(range(150)))
    cache.release(row)
    again, ready = take(cache, ids(range(150), range(600, 620)))
    assert (again is row, ready) == (True, 150)
    cache.release(again)
    sibling, ready = take(cache, ids(range(120), range(700, 720)))
    assert (sibling is row, ready) == (False, 120)
    assert held(cache, row) == ids(range(150), range(600, 620)).tolist()
    # At least one token must be computed to have something to sample from.
    assert cache.match(ids(range(150))).ready == 149


def test_a_prefix_under_way_is_promised_not_ready() -> None:
    cache = make_cache()
    tokens = ids(range(200))
    row = cache.take(tokens, cache.match(tokens))
    match = cache.match(ids(range(180), range(900, 910)))
    assert (match.ready, match.promised) == (0, 180)
    fill(cache, row)
    match = cache.match(ids(range(180), range(900, 910)))
    assert (match.ready, match.promised) == (180, 180)


def test_the_least_recently_used_idle_row_is_evicted() -> None:
    cache = make_cache(max_rows=3)
    rows = [take(cache, ids(range(100 * n, 100 * n + 50)))[0] for n in range(3)]
    assert not cache.has_room
    for n in (1, 0, 2):
        cache.release(rows[n])
    taken, _ = take(cache, ids(range(900, 950)))
    assert taken is rows[1]


def test_a_prefix_outlives_its_rows_in_a_trunk() -> None:
    cache = make_cache(max_rows=2)
    for n in range(2):
        take(cache, ids(range(100), range(200 + n, 203 + n)))
    for row in cache.rows:
        cache.release(row)
    for n in range(2):
        take(cache, ids(range(500 + 20 * n, 510 + 20 * n)))
    assert len(cache.trunks) == 1
    for row in cache.rows:
        cache.release(row)
    row, ready = take(cache, ids(range(100), range(900, 903)))
    assert (ready, row.leaning) == (96, 96)


def test_short_memory_drops_idle_rows_and_then_says_what_is_too_much() -> None:
    cache = make_cache(max_rows=16, max_bytes=16 * 192 * POSITION_BYTES)
    rows = [take(cache, ids(range(50 * n, 50 * n + 40)))[0] for n in range(8)]
    for row in rows[:6]:
        cache.release(row)
    longer = ids(range(40), range(500, 900))
    row, ready = take(cache, longer)
    # 440 positions in blocks leave room for fewer rows; the busy ones and the recent ones stay.
    assert ready == 40
    assert len(cache.rows) < 16
    assert {id(r) for r in cache.rows} >= {id(r) for r in (*rows[6:], row)}
    for kept in cache.rows:
        held(cache, kept)
    too_long = ids(range(900, 1000), range(900))
    cache.take(too_long, cache.match(too_long))
    with pytest.raises(SamplerError, match=r"4 sequences of up to 1000 tokens.*max_sequences"):
        cache.reserve([Chunk(row, 0, row.length) for row in cache.rows])
