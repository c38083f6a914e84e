"""A session's KV grows by tiles, which sessions can share; the budget counts what was promised."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import torch

from swarmd.core.errors import SessionError
from swarmd.engine.kv_cache import SEGMENT, BlockKV, KVBudget, RaggedCache
from swarmd.engine.tiles import LANES

LONG = 5 * SEGMENT + 11


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, count, 8, generator=torch.Generator().manual_seed(seed))


def filled(length: int, seed: int = 0, blocks: int = 2) -> RaggedCache:
    cache = RaggedCache(blocks)
    for number, block in enumerate(cache.blocks):
        block.write(rows(length, seed + number), rows(length, seed + number + 50), 0)
    cache.length = length
    return cache


def assert_holds(cache: RaggedCache, length: int, seed: int = 0) -> None:
    assert cache.length == length
    for number, block in enumerate(cache.blocks if length else []):
        key, value = block.read(0, length)
        assert torch.equal(key, rows(LONG, seed + number)[:, :length])
        assert torch.equal(value, rows(LONG, seed + number + 50)[:, :length])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 7, 1, 33])
def test_what_was_written_is_there_after_every_growth(dtype: torch.dtype, width: int) -> None:
    block, (key, value) = BlockKV(), torch.randn(2, 3, 500, width).to(dtype)
    position = 0
    for length in [1, 1, 62, 1, 100, 7, 128, 200]:
        block.write(
            key[:, position : position + length], value[:, position : position + length], position
        )
        position += length
        for begin in {0, position // 2, position - 1}:
            assert torch.equal(block.read(begin, position)[0], key[:, begin:position])
            assert torch.equal(block.read(begin, position)[1], value[:, begin:position])


def test_storage_is_taken_in_tiles_that_are_never_moved() -> None:
    block = BlockKV()
    assert block.nbytes == 0
    tiles: list[int] = []
    for position in range(300):
        block.write(rows(1), rows(1), position)
        assert position < block.capacity <= position + SEGMENT
        assert [tile.data_ptr() for tile in block.keys][: len(tiles)] == tiles
        tiles = [tile.data_ptr() for tile in block.keys]
    assert block.nbytes == block.capacity * 2 * (8 + LANES) * 4


def test_keys_and_values_may_have_different_widths() -> None:
    block = BlockKV()
    block.write(torch.ones(3, 5, 12), torch.ones(3, 5, 4), 0)
    assert [tensor.shape for tensor in block.read(0, 5)] == [(3, 5, 12), (3, 5, 4)]
    assert block.nbytes == block.capacity * 3 * (12 + LANES) * 4


def test_what_is_not_written_is_zero() -> None:
    block = BlockKV()
    block.write(rows(3), rows(3), 0)
    for part in block.read(0, SEGMENT):
        assert not part[:, 3:].any()


def test_rows_after_a_gap_are_refused() -> None:
    block = BlockKV()
    with pytest.raises(SessionError, match="room for 0"):
        block.write(rows(1), rows(1), SEGMENT + 1)


def test_rows_after_a_truncation_replace_those_before() -> None:
    cache = filled(10)
    assert cache.truncate(4) == 4
    cache.blocks[0].write(rows(3, seed=7), rows(3, seed=8), 4)
    joined = torch.cat([rows(10)[:, :4], rows(3, seed=7)], 1)
    assert torch.equal(cache.blocks[0].read(0, 7)[0], joined)


def test_a_prefix_is_shared_without_a_copy() -> None:
    first = filled(LONG)
    before = first.nbytes
    segments = [first.freeze(0, SEGMENT), first.freeze(SEGMENT, 4 * SEGMENT)]
    assert first.nbytes == before
    assert [(s.start, s.end) for s in segments] == [(0, SEGMENT), (SEGMENT, 4 * SEGMENT)]
    assert sum(s.nbytes for s in segments) == 4 * SEGMENT * 2 * 2 * (8 + LANES) * 4
    second = RaggedCache(2)
    second.attach(segments)
    assert second.length == 4 * SEGMENT
    assert_holds(second, 4 * SEGMENT)
    for mine, theirs in zip(first.blocks, second.blocks, strict=True):
        assert [t.data_ptr() for t in mine.keys[:4]] == [t.data_ptr() for t in theirs.keys]


def test_sharers_go_on_without_touching_each_other() -> None:
    first = filled(LONG)
    sharers = [RaggedCache(2) for _ in range(3)]
    segment = first.freeze(0, 3 * SEGMENT)
    for number, cache in enumerate(sharers):
        cache.attach([segment])
        for block in cache.blocks:
            block.write(rows(9, seed=30 + number), rows(9, seed=40 + number), 3 * SEGMENT)
        cache.length += 9
    assert_holds(first, LONG)
    for number, cache in enumerate(sharers):
        got = cache.blocks[0].read(3 * SEGMENT, cache.length)[0]
        assert torch.equal(got, rows(9, seed=30 + number))


@pytest.mark.parametrize("length", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, LONG - 1])
@pytest.mark.parametrize("own", [True, False], ids=["who froze", "who attached"])
def test_a_cut_through_shared_tiles_changes_nothing_for_others(length: int, own: bool) -> None:
    first, second = filled(LONG), RaggedCache(2)
    second.attach([first.freeze(0, SEGMENT), first.freeze(SEGMENT, 4 * SEGMENT)])
    cut, other = (first, second) if own else (second, first)
    held = min(length, cut.length)
    assert cut.truncate(length) == held
    assert_holds(cut, held)
    assert all(block.capacity == -(-held // SEGMENT) * SEGMENT for block in cut.blocks)
    for block in cut.blocks:
        block.write(rows(70, seed=90), rows(70, seed=91), held)
    assert_holds(other, other.length)


@pytest.mark.parametrize("length", [1, SEGMENT, 2 * SEGMENT - 1, 2 * SEGMENT, 2 * SEGMENT + 11])
def test_who_goes_on_from_a_tile_that_is_not_full_writes_into_a_copy(length: int) -> None:
    past = filled(LONG)
    segments = [past.freeze(n * SEGMENT, (n + 1) * SEGMENT) for n in range(2)]
    segments.append(past.freeze(2 * SEGMENT, 2 * SEGMENT + 11))
    held = [tile.clone() for segment in segments for tile in segment.blocks[0].keys]
    forks = [RaggedCache(2) for _ in range(2)]
    for number, fork in enumerate(forks):
        fork.attach(segments[: -(-length // SEGMENT)], length)
        assert_holds(fork, length)
        for block in fork.blocks:
            block.write(rows(70, seed=30 + number), rows(70, seed=40 + number), length)
        fork.length += 70
    for number, fork in enumerate(forks):
        got = fork.blocks[0].read(length, fork.length)[0]
        assert torch.equal(got, rows(70, seed=30 + number))
    after = [tile for segment in segments for tile in segment.blocks[0].keys]
    assert all(map(torch.equal, held, after))
    assert_holds(past, LONG)
    whole = length // SEGMENT
    assert all(
        fork.blocks[0].keys[n] is past.blocks[0].keys[n] for fork in forks for n in range(whole)
    )


def test_memory_of_a_segment_goes_with_its_last_holder() -> None:
    first, second = filled(2 * SEGMENT), RaggedCache(2)
    segment = first.freeze(0, SEGMENT)
    second.attach([segment])
    tile = weakref.ref(segment.blocks[0].keys[0])
    del segment
    first.truncate(0)
    gc.collect()
    assert tile() is not None
    second.truncate(SEGMENT - 1)
    gc.collect()
    assert tile() is None


@pytest.mark.parametrize(("start", "end"), [(1, 64), (64, 64), (128, 64), (0, 192)])
def test_only_what_is_held_can_be_frozen_from_a_tile_on(start: int, end: int) -> None:
    with pytest.raises(SessionError, match="multiple of 64"):
        filled(3 * SEGMENT - 1).freeze(start, end)


def test_a_prefix_is_attached_whole_and_to_an_empty_session() -> None:
    first = filled(LONG)
    segments = [first.freeze(0, SEGMENT), first.freeze(SEGMENT, 2 * SEGMENT)]
    for wrong in (segments[1:], segments[::-1]):
        with pytest.raises(SessionError, match="cannot follow"):
            RaggedCache(2).attach(wrong)
    with pytest.raises(SessionError, match="cannot follow"):
        filled(1).attach(segments)
    cache = RaggedCache(2)
    cache.attach([])
    assert cache.length == 0


def test_a_session_of_some_blocks_shares_those_only() -> None:
    first = RaggedCache(3)
    first.blocks[1].write(rows(SEGMENT), rows(SEGMENT), 0)
    first.length = SEGMENT
    segment = first.freeze(0, SEGMENT)
    assert [len(block.keys) for block in segment.blocks] == [0, 1, 0]
    second = RaggedCache(3)
    second.attach([segment])
    second.blocks[1].write(rows(1), rows(1), SEGMENT)
    with pytest.raises(SessionError, match="ran other blocks"):
        second.blocks[0].write(rows(1), rows(1), SEGMENT)


def test_kv_goes_out_and_comes_in_again() -> None:
    first, second = filled(LONG), RaggedCache(2)
    for start, end in ((0, 70), (70, 71), (71, LONG)):
        second.import_(start, first.export(start, end))
    assert_holds(second, LONG)
    with pytest.raises(SessionError, match="KV from position 5"):
        second.import_(5, first.export(5, 9))


@pytest.mark.parametrize(("length", "wanted"), [(0, 0), (3, 3), (10, 10), (11, 10), (-1, 0)])
def test_truncating_never_lengthens(length: int, wanted: int) -> None:
    cache = RaggedCache(2)
    cache.length = 10
    assert cache.truncate(length) == wanted


def test_a_budget_says_no_when_it_is_full_and_yes_after_a_release() -> None:
    budget = KVBudget(100)
    assert budget.reserve(b"a", 60)
    assert not budget.reserve(b"b", 41)
    assert budget.reserve(b"b", 40)
    assert (budget.free_bytes, budget.used_bytes) == (0, 100)
    assert budget.release(b"a") == 60
    assert budget.release(b"a") == 0
    assert budget.reserve(b"c", 60)


def test_a_reservation_can_grow_and_shrink_and_a_refusal_changes_nothing() -> None:
    budget = KVBudget(100)
    assert budget.reserve(b"a", 50)
    assert not budget.reserve(b"a", 101)
    assert budget.used_bytes == 50
    assert budget.reserve(b"a", 100)
    assert budget.reserve(b"a", 10)
    assert budget.free_bytes == 90


def test_two_threads_never_get_the_same_bytes() -> None:
    class Slow(KVBudget):
        """Others have their turn between its look at what is free and its reservation."""

        @property
        def free_bytes(self) -> int:
            free = super().free_bytes
            time.sleep(0.001)
            return free

    budget = Slow(100)
    got: list[bytes] = []

    def take(name: str) -> None:
        for number in range(20):
            key = f"{name}{number}".encode()
            if budget.reserve(key, 3):
                got.append(key)

    threads = [threading.Thread(target=take, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 33
    assert budget.used_bytes == 99
