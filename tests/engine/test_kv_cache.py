"""A session's KV grows as tokens come and no further; the budget counts what was promised."""

from __future__ import annotations

import threading

import pytest
import torch

from swarmd.engine.kv_cache import STEP, BlockKV, KVBudget, RaggedCache


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, count, 8, generator=torch.Generator().manual_seed(seed))


def held(block: BlockKV, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    assert block.key is not None
    assert block.value is not None
    return block.key[:, :length], block.value[:, :length]


def test_what_was_written_is_there_after_every_growth() -> None:
    block, key, value = BlockKV(), rows(500), rows(500, seed=1)
    position = 0
    for length in [1, 1, 62, 1, 100, 7, 128, 200]:
        block.write(
            key[:, position : position + length], value[:, position : position + length], position
        )
        position += length
        assert torch.equal(held(block, position)[0], key[:, :position])
        assert torch.equal(held(block, position)[1], value[:, :position])


def test_storage_is_taken_in_steps_and_stays_near_what_is_held() -> None:
    block = BlockKV()
    assert block.nbytes == 0
    for position in range(1000):
        block.write(rows(1), rows(1), position)
        assert position < block.capacity <= (position + 1) * 1.1 + STEP
        assert block.capacity % STEP == 0
    assert block.nbytes == block.capacity * 2 * 8 * 4 * 2


def test_keys_and_values_may_have_different_widths() -> None:
    block = BlockKV()
    block.write(torch.ones(3, 5, 12), torch.ones(3, 5, 4), 0)
    assert block.nbytes == block.capacity * 3 * (12 + 4) * 4


def test_rows_after_a_truncation_replace_those_before() -> None:
    cache = RaggedCache(1)
    block = cache.blocks[0]
    block.write(rows(10), rows(10), 0)
    cache.length = 10
    assert cache.truncate(4) == 4
    block.write(rows(3, seed=7), rows(3, seed=8), 4)
    assert torch.equal(held(block, 7)[0], torch.cat([rows(10)[:, :4], rows(3, seed=7)], 1))


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
    budget = KVBudget(1000)
    got: list[bytes] = []

    def take(name: str) -> None:
        for number in range(500):
            key = f"{name}{number}".encode()
            if budget.reserve(key, 3):
                got.append(key)

    threads = [threading.Thread(target=take, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 333
    assert budget.used_bytes == 999
