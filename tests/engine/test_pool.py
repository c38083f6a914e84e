"""Tiles in pools, as on an accelerator: sessions share forwards, prefixes and tiles as on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from swarmd.core.errors import SessionError
from swarmd.core.span import Span
from swarmd.engine import attention, pool, pool_plan
from swarmd.engine.attention import RowContext, RowSegment, ragged_attention, row_context
from swarmd.engine.kv_cache import SEGMENT, RaggedCache
from swarmd.engine.stage import Batch, Segment, Stage
from tests.engine import exactness
from tests.engine.architectures import RAGGED

HEADS, KV_HEADS, WIDTH, VALUE_WIDTH = 6, 2, 24, 16
LONG = 3 * SEGMENT + 20
CPU = torch.device("cpu")

RULES: list[dict[str, Any]] = [
    {},
    {"sliding_window": 70},
    {"sliding_window": 70, "softcap": 3.0},
    {"s_aux": torch.linspace(-1.0, 2.0, HEADS), "scaling": 0.3},
]


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use pools on the CPU too."""
    monkeypatch.setattr(pool, "pays", lambda _: True)


class Block(torch.nn.Module):
    layer_idx = 0


class Sequence:
    """One session of one block with all queries, keys and values that it will ever have."""

    def __init__(self, seed: int, cache: RaggedCache) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parts = [
            torch.randn(heads, LONG, width, generator=generator)
            for heads, width in ((HEADS, WIDTH), (KV_HEADS, WIDTH), (KV_HEADS, VALUE_WIDTH))
        ]
        self.cache = cache
        self.outputs: list[torch.Tensor] = []


def run(work: list[tuple[Sequence, int]], rule: dict[str, Any], padding: int = 0) -> None:
    """Run the next rows of each sequence together."""
    segments, start = [], 0
    pieces: list[list[torch.Tensor]] = []
    for sequence, count in work:
        position = sequence.cache.length
        segments.append(RowSegment(sequence.cache, position, start, count))
        pieces.append([part[:, position : position + count] for part in sequence.parts])
        sequence.cache.length += count
        start += count
    pieces += [[part[:, :1] for part in work[0][0].parts]] * padding
    query, key, value = (torch.cat(parts, 1)[None] for parts in zip(*pieces, strict=True))
    with row_context(RowContext(segments, 0)):
        out, _ = ragged_attention(Block(), query, key, value, None, **rule)
    assert out[0, start:].eq(0).all()
    for (sequence, count), segment in zip(work, segments, strict=True):
        sequence.outputs.append(out[0, segment.start : segment.start + count])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "+".join(rule) or "plain")
@pytest.mark.parametrize("most", [1, pool_plan.MOST_BYTES])
def test_many_sessions_get_what_each_gets_alone(
    rule: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_plan, "MOST_BYTES", most)
    tiles = pool.TilePool(CPU)
    ours = [Sequence(n, RaggedCache(1, [tiles])) for n in range(6)]
    plain = [Sequence(n, RaggedCache(1)) for n in range(6)]
    for sequences in (ours, plain):
        for number, sequence in enumerate(sequences):
            run([(sequence, 1 + 37 * number)], rule)
        run([(sequences[2], 1), (sequences[0], 50), (sequences[5], 1)], rule)
        run([(sequences[4], 1)], rule, padding=1)
        for _ in range(24):
            run([(sequences[n], 1) for n in (3, 0, 4, 1, 3, 5, 2)], rule)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(torch.cat(one.outputs), torch.cat(other.outputs))


def test_a_tile_given_back_comes_again_empty_and_nobody_reads_what_was_in_it() -> None:
    tiles = pool.TilePool(CPU)
    first = Sequence(0, RaggedCache(1, [tiles]))
    first.parts[1][:] = first.parts[2][:] = torch.nan
    run([(first, LONG)], {})
    held = set(first.cache.blocks[0].indices.tolist())
    assert first.cache.nbytes == len(held) * tiles.tile_bytes
    first.cache.truncate(0)
    assert held <= set(tiles.free)
    second, alone = Sequence(1, RaggedCache(1, [tiles])), Sequence(1, RaggedCache(1))
    other, twin = Sequence(2, RaggedCache(1, [tiles])), Sequence(2, RaggedCache(1))
    for a, b in ((second, other), (alone, twin)):
        run([(a, 100)], {})
        run([(b, 3)], {})
        run([(a, 1), (b, 1)], {})
    assert set(second.cache.blocks[0].indices.tolist()) & held
    for one, wanted in ((second, alone), (other, twin)):
        torch.testing.assert_close(torch.cat(one.outputs), torch.cat(wanted.outputs))


def test_a_pool_grows_and_keeps_what_is_in_it() -> None:
    tiles = pool.TilePool(CPU)
    sequences = [Sequence(n, RaggedCache(1, [tiles])) for n in range(30)]
    for sequence in sequences:
        run([(sequence, LONG)], {})
    for sequence in sequences:
        keys, values = sequence.cache.blocks[0].read(3, LONG)
        assert torch.equal(keys, sequence.parts[1][:, 3:])
        assert torch.equal(values, sequence.parts[2][:, 3:])
    with pytest.raises(SessionError, match="keys and values"):
        tiles.take(1, torch.zeros(1, 1, 8), torch.zeros(1, 1, 8))


def test_what_is_shared_is_never_written_by_who_goes_on() -> None:
    tiles = pool.TilePool(CPU)
    first = Sequence(0, RaggedCache(1, [tiles]))
    run([(first, 100)], {})
    prefix = first.cache.freeze(0, 100)
    wanted = [part.clone() for part in prefix.blocks[0].read(0, 100)]
    second = Sequence(3, RaggedCache(1, [tiles]))
    second.cache.attach([prefix], 90)
    run([(second, 40)], {})
    run([(first, 40)], {})
    for got, before in zip(prefix.blocks[0].read(0, 100), wanted, strict=True):
        assert torch.equal(got, before)
    free = len(tiles.free)
    shared = len(set(first.cache.blocks[0].indices) & set(second.cache.blocks[0].indices))
    assert shared == 1
    del prefix
    first.cache.truncate(0)
    second.cache.truncate(0)
    assert len(tiles.free) == free + 1 + 1 + 2 + 2  # shared, the prefix's own end, theirs


def test_keys_and_values_go_from_tiles_of_one_kind_to_the_other() -> None:
    tiles = pool.TilePool(CPU)
    there = Sequence(0, RaggedCache(1, [tiles]))
    run([(there, 100)], {})
    here, back = RaggedCache(1), RaggedCache(1, [pool.TilePool(CPU)])
    here.import_(0, there.cache.export(0, 100))
    back.import_(0, here.export(0, 70))
    back.import_(70, here.export(70, 100))
    with torch.inference_mode():
        back.blocks[0].write(there.parts[1][:, 100:101], there.parts[2][:, 100:101], 100)
    assert torch.equal(back.blocks[0].read(0, 101)[0], there.parts[1][:, :101])
    assert torch.equal(back.blocks[0].read(0, 101)[1], there.parts[2][:, :101])


SOME = {"llama", "mistral", "gemma2", "gpt_oss", "gpt2", "deepseek_v3", "phi"}


@pytest.mark.parametrize("architecture", [a for a in RAGGED if str(a) in SOME], ids=str)
@pytest.mark.usefixtures("pooled")
def test_a_model_on_pools_generates_what_it_should(architecture: Any) -> None:
    case = exactness.case.__wrapped__(architecture)
    prompts = [ids[: exactness.PROMPT] for ids in case.ids]
    for cuts in ((0, 4), (0, 1, 3, 4)):
        stages = case.chain(cuts)
        assert all(_is_pooled(stage) for stage in stages), stages[0].ragged_reason
        sessions = exactness.run_together(stages, prompts)
        for session, ids, logits in zip(sessions, case.ids, case.logits, strict=True):
            exactness.assert_as_generated(session, ids, logits)


def _is_pooled(stage: Stage) -> bool:
    cache = stage.new_cache()
    return isinstance(cache, RaggedCache) and isinstance(cache.blocks[0], pool.PooledKV)


@pytest.mark.usefixtures("pooled")
def test_after_a_failed_step_a_session_goes_on_as_if_it_had_not_been() -> None:
    stage = exactness.case.__wrapped__(RAGGED[0]).stage(Span(0, 4))
    cache, wanted = stage.new_cache(), stage.new_cache()
    assert isinstance(cache, RaggedCache)
    ids = torch.arange(5, 75)

    def step(to: Any, at: int, count: int) -> torch.Tensor:
        segments = (Segment(to, at, count),)
        return stage.forward(Batch(0, 4, segments, ids[at : at + count], None, (count - 1,)))

    for one in (cache, wanted):
        step(one, 0, 60)
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: Any, **__: Any) -> None:
            raise MemoryError

        patch.setattr(attention, "_fused", fail)
        with pytest.raises(MemoryError):
            step(cache, 60, 10)
    for block in cache.blocks:
        block.keep(-(-cache.length // SEGMENT))
    assert torch.equal(step(cache, 60, 10), step(wanted, 60, 10))
