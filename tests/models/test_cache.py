"""KVCache alone; the tests of the models compare cached and uncached forward passes."""

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore.models import KVCache


def states(rows: int, positions: int, *, heads: int = 2, width: int = 3, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(rows, heads, positions, width, dtype=dtype)


@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=5), spare=st.integers(0, 3))
def test_append_returns_all_chunks_in_order(chunks, spare):
    cache = KVCache(sum(chunks) + spare)
    keys, values = [], []
    for chunk in chunks:
        keys.append(states(2, chunk))
        values.append(states(2, chunk))
        for layer in range(3):  # the length advances after the last layer
            key, value = cache.layer(layer).append((layer + 1) * keys[-1], values[-1] - layer)
            assert torch.equal(key, (layer + 1) * torch.cat(keys, 2))
            assert torch.equal(value, torch.cat(values, 2) - layer)
        cache.advance(chunk)
    assert cache.length == sum(chunks)


def test_a_dropped_cache_is_freed_without_garbage_collection():
    cache = KVCache(4)
    cache.layer(0).append(states(2, 3), states(2, 3))
    memory = weakref.ref(cache.layer(0).key)
    gc.disable()
    try:
        del cache
        assert memory() is None
    finally:
        gc.enable()


def test_buffers_follow_the_first_keys():
    cache = KVCache(7)
    first = states(4, 2, heads=5, width=6, dtype=torch.bfloat16)
    cache.layer(0).append(first, first)
    assert cache.layer(0).key.shape == (4, 5, 7, 6)
    assert cache.layer(0).key.dtype == torch.bfloat16
    on_meta = KVCache(7)
    on_meta.layer(0).append(states(1, 1).to("meta"), states(1, 1).to("meta"))
    assert on_meta.layer(0).key.is_meta


@given(index=st.lists(st.integers(0, 2), min_size=1, max_size=7))
def test_reorder_repeats_drops_and_grows_rows(index):
    cache = KVCache(6)
    key, value = states(3, 4), states(3, 4)
    for layer in range(2):
        cache.layer(layer).append(key + layer, value - layer)
    cache.advance(4)
    cache.reorder(torch.tensor(index))
    new = states(len(index), 1)
    for layer in range(2):
        keys, values = cache.layer(layer).append(new, -new)
        assert torch.equal(keys, torch.cat([key[index] + layer, new], 2))
        assert torch.equal(values, torch.cat([value[index] - layer, -new], 2))
    cache.advance(1)
    assert cache.length == 5


def test_reorder_and_select_sources_are_independent():
    cache = KVCache(3)
    layer = cache.layer(0)
    key, cross = states(4, 1), (states(2, 5), states(2, 5))
    layer.append(key, key)
    layer.cross = cross
    cache.advance(1)
    cache.reorder(torch.tensor([3, 3]))
    assert layer.cross is cross
    cache.select_sources(torch.tensor([1]))
    assert torch.equal(layer.cross[0], cross[0][1:])
    assert torch.equal(layer.cross[1], cross[1][1:])
    assert torch.equal(layer.key[:, :, :1], key[[3, 3]])


def test_an_empty_cache_can_be_reordered():
    cache = KVCache(3)
    cache.layer(0)
    cache.reorder(torch.tensor([0, 0]))
    cache.select_sources(torch.tensor([0]))
    assert cache.length == 0


def test_a_full_cache_raises():
    cache = KVCache(5)
    cache.layer(0).append(states(1, 4), states(1, 4))
    cache.advance(4)
    with pytest.raises(ValueError, match="the cache holds 5 positions, 6 are needed"):
        cache.layer(0).append(states(1, 2), states(1, 2))
    assert cache.length == 4
    cache.layer(0).append(states(1, 1), states(1, 1))  # still usable


@pytest.mark.parametrize("rows", [1, 3])
def test_another_batch_size_raises(rows):
    """A single row would broadcast."""
    cache = KVCache(5)
    cache.layer(0).append(states(2, 1), states(2, 1))
    cache.advance(1)
    with pytest.raises(ValueError, match=f"the cache holds 2 rows, got {rows}.*reorder"):
        cache.layer(0).append(states(rows, 1), states(rows, 1))


@given(
    index=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    start=st.integers(0, 4),
    later=st.lists(st.integers(0, 2), min_size=3, max_size=3),
)
def test_a_common_prefix_need_not_be_copied(index, start, later):
    full, partial = KVCache(6), KVCache(6)
    key, value = states(3, 4), states(3, 4)
    key[:, :, :start], value[:, :, :start] = key[:1, :, :start], value[:1, :, :start]
    for cache in (full, partial):
        cache.layer(0).append(key, value)
        cache.advance(4)
    new = states(3, 1)
    for rows in (index, later):
        full.reorder(torch.tensor(rows))
        partial.reorder(torch.tensor(rows), start=start)
        for got, want in zip(
            partial.layer(0).append(new, -new), full.layer(0).append(new, -new), strict=True
        ):
            assert torch.equal(got, want)


def test_start_is_ignored_if_the_number_of_rows_changes():
    cache = KVCache(3)
    key = states(2, 2)
    cache.layer(0).append(key, key)
    cache.advance(2)
    cache.reorder(torch.tensor([0, 1, 1]), start=1)
    assert torch.equal(cache.layer(0).key[:, :, :2], key[[0, 1, 1]])


def test_crop_forgets_the_last_positions_and_an_empty_cache_takes_any_batch():
    cache = KVCache(5)
    key, value = states(2, 4), states(2, 4)
    cache.layer(0).append(key, value)
    cache.advance(4)
    for length in (-1, 5):
        with pytest.raises(ValueError, match=f"length is {length}, expected 0 to 4"):
            cache.crop(length)
    cache.crop(1)
    more = states(2, 2)
    assert torch.equal(cache.layer(0).append(more, more)[0], torch.cat([key[:, :, :1], more], 2))
    cache.crop(0)
    other = states(3, 2, heads=5)
    assert torch.equal(cache.layer(0).append(other, other)[1], other)
