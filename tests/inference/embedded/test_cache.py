"""The book over cached tokens: who holds what, and what happens when memory is short."""

import numpy as np
import psutil
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


def test_rows_of_a_trunk_that_share_much_more_get_a_deeper_one() -> None:
    cache = make_cache()
    take(cache, ids(range(100), range(900, 910)))
    first, _ = take(cache, ids(range(100), range(200, 700), range(10)))
    assert first.leaning == 96
    second, ready = take(cache, ids(range(100), range(200, 700), range(20, 30)))
    assert (ready, first.leaning, second.leaning) == (600, 576, 576)
    assert first.trunk is second.trunk is cache.trunks[1]
    # A little more shared is not worth another one.
    third, ready = take(cache, ids(range(100), range(200, 700), range(20, 28), range(800, 810)))
    assert (ready, third.leaning) == (608, 576)
    for row in (first, second, third):
        held(cache, row)


def test_trunks_take_a_bounded_share_of_memory_and_the_oldest_idle_one_goes() -> None:
    cache = make_cache(max_rows=4, max_bytes=4 * 320 * POSITION_BYTES)
    for n in range(4):
        for last in range(2):
            row, _ = take(cache, ids(range(100 * n, 100 * n + 99), range(900 + last, 903 + last)))
            cache.release(row)
    assert [trunk.ids[0] for trunk in cache.trunks] == [100, 200, 300]


def test_memory_is_taken_for_what_rows_hold_and_given_back() -> None:
    cache = make_cache(max_rows=512)
    rows = [take(cache, ids(range(8 * n, 8 * n + 8)))[0] for n in range(256)]
    take(cache, ids(range(2000)))
    whole = 2 * SHAPE.layers * cache.keys[0].nbytes
    assert whole > 50 << 20
    before = psutil.Process().memory_info().rss
    cache.clear()
    # All that was held is likely to be wanted again.
    assert any(tensor.any() for tensor in cache.keys)
    row, _ = take(cache, ids(range(8)))
    cache.clear()
    # What rows do not use was never written, so giving all of it back frees little.
    assert before - psutil.Process().memory_info().rss < whole // 10
    assert all(not tensor.any() for tensor in (*cache.keys, *cache.values))
    assert len(rows) == 256


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
