"""Bit by bit in bfloat16: a replay, other batch mates and another schedule change nothing.

That is what makes a repaired generation the same text as an undisturbed one.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from swarmd.core.span import Span
from swarmd.engine import tile_attention
from swarmd.engine.kv_cache import RaggedCache
from swarmd.engine.load import load_stage
from swarmd.engine.stage import Batch, Segment, SequenceCache, Stage
from tests.engine import exactness
from tests.engine.architectures import VOCAB, Architecture
from tests.engine.sources import DirectorySource

PROMPT, DECODED = 60, 40

Work = tuple[list[SequenceCache], torch.Tensor, tuple[int, ...]]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Stage]:
    where = tmp_path_factory.mktemp("model")
    keys = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "sliding_window": 24}
    Architecture(request.param, keys, spread=1.5).build().save_pretrained(where)
    source = DirectorySource(where)
    made = [load_stage(source, Span(a, a + 2), dtype="bfloat16", kv_memory=0) for a in (0, 2)]
    if not all(stage.replay_exact for stage in made):
        pytest.skip("this machine's bfloat16 depends on the number of rows, and the probe says so")
    return made


def tokens(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (PROMPT + DECODED,), generator=generator)


def run(stages: list[Stage], work: list[Work]) -> torch.Tensor:
    """Run (caches, all ids of the session, lengths of the next segments) of sessions in one row."""
    rows, hidden = [], None
    for index, stage in enumerate(stages):
        segments = []
        for caches, ids, lengths in work:
            position = caches[index].length
            for length in lengths:
                segments.append(Segment(caches[index], position, length))
                if stage.is_first:
                    rows.append(ids[position : position + length])
                position += length
        total = sum(segment.length for segment in segments)
        every = tuple(range(total)) if stage.is_last else ()
        ids = torch.cat(rows) if stage.is_first else None
        batch = Batch(stage.span.start, stage.span.end, tuple(segments), ids, hidden, every)
        hidden = stage.forward(batch)
    assert hidden is not None
    return hidden


def caches(stages: list[Stage]) -> list[SequenceCache]:
    return [stage.new_cache() for stage in stages]


def assert_same_bits(first: list[SequenceCache], second: list[SequenceCache]) -> None:
    for one, two in zip(first, second, strict=True):
        assert isinstance(one, RaggedCache)
        assert isinstance(two, RaggedCache)
        assert one.length == two.length > 0
        for a, b in zip(one.blocks, two.blocks, strict=True):
            for mine, theirs in zip(a.read(0, one.length), b.read(0, one.length), strict=True):
                assert torch.equal(mine, theirs)


def undisturbed(stages: list[Stage], chunk: int) -> tuple[list[SequenceCache], torch.Tensor]:
    """A prompt in chunks, then one token after the other, alone."""
    held, ids = caches(stages), tokens(0)
    outputs = [run(stages, [(held, ids, (chunk,))]) for _ in range(PROMPT // chunk)]
    outputs += [run(stages, [(held, ids, (1,))]) for _ in range(DECODED)]
    return held, torch.cat(outputs)


@pytest.mark.parametrize("chunk", [12, 30])
def test_a_replay_in_the_logged_chunks_gives_the_same_bits(stages: list[Stage], chunk: int) -> None:
    held, wanted = undisturbed(stages, chunk)
    again, ids = caches(stages), tokens(0)
    outputs = [run(stages, [(again, ids, (chunk,) * (PROMPT // chunk))])]
    outputs.append(run(stages, [(again, ids, (1,) * DECODED)]))
    assert torch.equal(torch.cat(outputs), wanted)
    assert_same_bits(again, held)


def test_batch_mates_change_no_bit(stages: list[Stage]) -> None:
    held, wanted = undisturbed(stages, 20)
    again, ids = caches(stages), tokens(0)
    mates = [(caches(stages), tokens(seed)) for seed in (1, 2, 3)]
    outputs = []
    pieces = itertools.chain([20] * (PROMPT // 20), [1] * DECODED)
    for turn, piece in enumerate(pieces):
        work = [(again, ids, (piece,))]
        for number, (mate, mate_ids) in enumerate(mates):
            length = 7 if turn % 4 == number else 1
            if turn % (number + 2) and mate[0].length + length <= PROMPT + DECODED:
                work.insert(number % 2, (mate, mate_ids, (length,)))
        mine = next(n for n, item in enumerate(work) if item[0] is again)
        start = sum(sum(lengths) for _, _, lengths in work[:mine])
        outputs.append(run(stages, work)[start : start + piece])
    assert torch.equal(torch.cat(outputs), wanted)
    assert_same_bits(again, held)


def test_a_truncated_and_replayed_session_has_the_same_bits(stages: list[Stage]) -> None:
    held, wanted = undisturbed(stages, 20)
    again, ids = caches(stages), tokens(0)
    for _ in range(3):
        run(stages, [(again, ids, (20,))])
    run(stages, [(again, tokens(5), (1,) * 9)])
    for cache in again:
        assert cache.truncate(PROMPT) == PROMPT
    outputs = run(stages, [(again, ids, (1,) * DECODED)])
    assert torch.equal(outputs, wanted[PROMPT:])
    assert_same_bits(again, held)


@pytest.mark.parametrize("chunks", [(60,), (50, 10), (1, 59), (7, 2, 41, 10)])
def test_a_prompt_gives_the_same_bits_in_other_chunks(
    stages: list[Stage], chunks: tuple[int, ...]
) -> None:
    if not all(stage.chunk_exact for stage in stages):
        pytest.skip("not so on this machine, and the probe says so")
    held, wanted = undisturbed(stages, 20)
    again, ids = caches(stages), tokens(0)
    outputs = [run(stages, [(again, ids, (count,))]) for count in (*chunks, *(1,) * DECODED)]
    assert torch.equal(torch.cat(outputs), wanted)
    assert_same_bits(again, held)


@pytest.mark.parametrize("stages", ["llama"], indirect=True)
def test_on_the_plain_way_other_chunks_would_not_give_the_same_bits(
    stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If they did, the tests above would prove nothing."""
    monkeypatch.setattr(tile_attention, "usable", lambda *_: False)
    held, _ = undisturbed(stages, 20)
    again, ids = caches(stages), tokens(0)
    for _ in range(2):
        run(stages, [(again, ids, (50,))])
    with pytest.raises(AssertionError):
        assert_same_bits(again, held)


def test_in_float32_other_chunks_give_the_same_tokens(tmp_path: Path) -> None:
    Architecture("llama", spread=1.5).build().save_pretrained(tmp_path)
    stage = load_stage(DirectorySource(tmp_path), Span(0, 4), dtype="float32", kv_memory=0)
    assert stage.replay_exact
    prompt = tokens(0)[:PROMPT].tolist()
    wanted = exactness.run_one([stage], prompt).ids
    for chunks in ((7, 30, 23), (59, 1), (1, 1, 58)):
        assert exactness.run_one([stage], prompt, chunks).ids == wanted
