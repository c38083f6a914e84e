"""The kernel for a whole microbatch: the bits of a row depend on nothing but its own session."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swarmd.core.span import Span
from swarmd.engine import attention, load, tile_attention
from swarmd.engine.attention import RowContext, RowSegment, ragged_attention, row_context
from swarmd.engine.kv_cache import SEGMENT, RaggedCache
from swarmd.engine.stage import Batch, Segment, Stage
from tests.engine.architectures import Architecture
from tests.engine.sources import DirectorySource

pytest.importorskip("numba")
from swarmd.engine import simd

HEADS, KV_HEADS, WIDTH = 6, 2, 24
LONG = 3 * SEGMENT + 20

RULES: list[dict[str, Any]] = [
    {},
    {"sliding_window": 70, "softcap": 3.0},
    {"s_aux": torch.linspace(-1.0, 2.0, HEADS), "scaling": 0.3},
]

Work = tuple["Sequence", int]


class Block(torch.nn.Module):
    layer_idx = 0


class Sequence:
    """One session of one block with all queries, keys and values that it will ever have."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.bfloat16, length: int = LONG) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parts = [
            torch.randn(heads, length, WIDTH, generator=generator).to(dtype)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        ]
        self.cache = RaggedCache(1)
        self.outputs: list[torch.Tensor] = []

    @property
    def output(self) -> torch.Tensor:
        """(rows, heads, width) so far."""
        return torch.cat(self.outputs)


def run(work: list[Work], rule: dict[str, Any]) -> RowContext:
    """Run the next rows of each sequence together."""
    segments, start = [], 0
    pieces: list[list[torch.Tensor]] = []
    for sequence, count in work:
        position = sequence.cache.length
        segments.append(RowSegment(sequence.cache, position, start, count))
        pieces.append([part[:, position : position + count] for part in sequence.parts])
        sequence.cache.length += count
        start += count
    query, key, value = (torch.cat(parts, 1)[None] for parts in zip(*pieces, strict=True))
    with row_context(RowContext(segments, 0)) as context:
        out, _ = ragged_attention(Block(), query, key, value, None, **rule)
    for (sequence, count), segment in zip(work, segments, strict=True):
        sequence.outputs.append(out[0, segment.start : segment.start + count])
    return context


@pytest.fixture(params=RULES, ids=lambda rule: "+".join(rule) or "plain")
def rule(request: pytest.FixtureRequest) -> dict[str, Any]:
    made: dict[str, Any] = request.param
    return made


@pytest.fixture
def alone(rule: dict[str, Any]) -> torch.Tensor:
    """What sequence 0 gives by itself in one go."""
    sequence = Sequence(0)
    run([(sequence, LONG)], rule)
    return sequence.output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_agrees_with_the_plain_way(dtype: torch.dtype, rule: dict[str, Any]) -> None:
    ours, plain = Sequence(0, dtype), Sequence(0, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_attention, "usable", lambda *_: False)
        for count in (100, 1, LONG - 101):
            assert run([(plain, count)], rule).tiled == 0
    for count in (100, 1, LONG - 101):
        assert run([(ours, count)], rule).tiled == 1
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(ours.output, plain.output, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("chunks", [(1, 63, 1, 80), (130, 14, 1), (1,) * 70, (64, 64, 17)])
def test_chunks_change_no_bit(
    chunks: tuple[int, ...], rule: dict[str, Any], alone: torch.Tensor
) -> None:
    sequence = Sequence(0)
    for count in (*chunks, LONG - sum(chunks)):
        run([(sequence, count)], rule)
    assert torch.equal(sequence.output, alone)


def test_company_changes_no_bit(rule: dict[str, Any], alone: torch.Tensor) -> None:
    sequence, others = Sequence(0), [Sequence(n + 1) for n in range(12)]
    run([(others[0], 7), (sequence, LONG - 40), (others[1], 100)], rule)
    for turn in range(40):
        mates = [(other, 1) for n, other in enumerate(others) if turn % (n + 1) == 0]
        run([*mates[::2], (sequence, 1), *mates[1::2]], rule)
    assert torch.equal(sequence.output, alone)


def test_rows_of_one_token_of_one_session_are_as_if_they_came_singly(
    rule: dict[str, Any], alone: torch.Tensor
) -> None:
    sequence = Sequence(0)
    run([(sequence, 90)], rule)
    run([(sequence, 1)] * (LONG - 90), rule)
    assert torch.equal(sequence.output, alone)


def sharers(count: int, tiles: list[int]) -> Iterator[Sequence]:
    """Sessions with a common beginning of so many tiles each; then each goes its own way."""
    first = Sequence(0)
    run([(first, LONG)], {})
    for number, shared in zip(range(count), itertools.cycle(tiles), strict=False):
        held = shared * SEGMENT
        sequence = Sequence(0)
        own = Sequence(100 + number)
        for part, other in zip(sequence.parts, own.parts, strict=True):
            part[:, held:] = other[:, held:]
        if held:
            sequence.cache.attach([first.cache.freeze(0, held)])
        yield sequence


@pytest.mark.parametrize("tiles", [[3], [2, 3], [1, 3], [0, 2]], ids=str)
def test_a_shared_prefix_changes_no_bit(tiles: list[int], rule: dict[str, Any]) -> None:
    together, apart = list(sharers(30, tiles)), list(sharers(30, tiles))
    for copy in apart:
        for tile in range(len(copy.cache.blocks[0].keys)):
            copy.cache.blocks[0].own(tile)
    for _ in range(12):
        joint = run([(sequence, 1) for sequence in together], rule)
        single = run([(copy, 1) for copy in apart], rule)
        assert len(joint.plans[3].groups) < len(single.plans[3].groups) == 30
    for sequence, copy in zip(together, apart, strict=True):
        assert torch.equal(sequence.output, copy.output)


def test_what_all_share_is_read_once_for_as_many_rows_as_fit() -> None:
    plan = run([(sequence, 1) for sequence in sharers(40, [3])], {}).plans[3]
    assert [(end - begin, shared) for begin, end, shared in plan.groups] == [(21, 3), (19, 3)]


def test_who_shares_less_does_not_make_the_others_read_again() -> None:
    mixed = [*sharers(4, [3]), *sharers(1, [1])]
    plan = run([(sequence, 1) for sequence in mixed], {}).plans[3]
    shared = {end - begin: tiles for begin, end, tiles in plan.groups.tolist()}
    assert shared == {4: 3, 1: 0}


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_threads_share_the_work_and_change_no_bit(
    rule: dict[str, Any], alone: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_attention, "WORTH_A_THREAD", 1)
    shares: list[int] = []
    spread = tile_attention.spread
    monkeypatch.setattr(
        tile_attention, "spread", lambda s, work: (shares.append(len(s)), spread(s, work))[1]
    )
    sequence = Sequence(0)
    run([(sequence, LONG - 1), (Sequence(5), 9)], rule)
    run([(sequence, 1)], rule)
    assert torch.equal(sequence.output, alone)
    assert shares[0] == 3


def test_each_work_is_in_one_share() -> None:
    groups: list[tuple[list[tuple[int, int, int, int, int]], int]] = [
        ([(0, 8, 0, 0, tiles)], 0) for tiles in (1, 900, 3, 50, 50, 2000, 1)
    ]
    plan = tile_attention.Plan([], [(0, 1, 0, 0)], groups)
    for threads, kv_heads in itertools.product((1, 2, 3, 8, 100), (1, 4)):
        shares = plan.shares(kv_heads, threads)
        assert 1 <= len(shares) <= threads
        assert [n for a, b in shares for n in range(a, b)] == list(range(7 * kv_heads))


def test_damaged_keys_are_not_glossed_over() -> None:
    sequence = Sequence(0)
    sequence.parts[1][:, 30] = float("nan")
    run([(sequence, LONG)], {})
    finite = sequence.output.isfinite().all(-1).all(-1)
    assert finite[:30].all()
    assert not finite[30:].any()


def test_other_types_and_devices_go_the_plain_way() -> None:
    rows = torch.randn(1, 4, 3, 8)
    assert tile_attention.usable(rows, rows)
    assert not tile_attention.usable(rows.half(), rows.half())
    assert not tile_attention.usable(rows.double(), rows.double())
    assert not tile_attention.usable(rows.to("meta"), rows.to("meta"))
    assert not tile_attention.usable(torch.randn(1, 65, 1, 8), torch.randn(1, 1, 1, 8))


def wrong(*_: Any) -> torch.Tensor:
    return torch.zeros(1, 70, 6, 8)


def broken(*_: Any) -> torch.Tensor:
    raise RuntimeError("no such instruction")


@pytest.mark.parametrize("attend", [wrong, broken])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_that_is_wrong_is_given_up(
    attend: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(1, 4, 3, 8, dtype=dtype)
    monkeypatch.setattr(tile_attention, "kernel", tile_attention.kernel)
    load.check_kernel(torch.device("cpu"), dtype)
    assert tile_attention.usable(rows, rows)
    monkeypatch.setattr(tile_attention, "attend", attend)
    load.check_kernel(torch.device("cpu"), dtype)
    assert not tile_attention.usable(rows, rows)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    where: Path = tmp_path_factory.mktemp("model")
    Architecture("llama").build().save_pretrained(where)
    return load.load_stage(DirectorySource(where), Span(0, 4), dtype="float32", kv_memory=0)


def test_a_microbatch_of_many_sessions_is_attended_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[RowContext] = []
    original = attention.row_context

    def noting(context: RowContext) -> row_context:
        made.append(context)
        return original(context)

    monkeypatch.setattr(attention, "row_context", noting)
    for name in ("one_by_one", "_attend_segment"):
        monkeypatch.delattr(attention, name)
    caches = [stage.new_cache() for _ in range(32)]
    segments = tuple(Segment(held, 0, 1) for held in caches)
    stage.forward(Batch(0, 4, segments, token_ids=torch.arange(32), logits_at=(31,)))
    assert [context.tiled for context in made] == [4]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
def test_pairs_are_multiplied_alike_on_any_cpu(
    native: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and not simd.has_pair_products():
        pytest.skip("this CPU has no products of pairs")
    import numba

    monkeypatch.setattr(simd, "has_pair_products", lambda: native)
    product = simd._product(rows, 4, pairs=True, fresh=True)
    a, b = torch.randn(rows, 10).bfloat16(), torch.randn(5, 64, 2).bfloat16()
    out = np.empty((rows, 64), np.float32)

    @numba.njit
    def call(c: int, a: int, b: int) -> None:
        product(c, 256, a, 20, b, 256, 5)

    call(out.ctypes.data, a.data_ptr(), b.data_ptr())
    wanted = torch.einsum("rkp,kcp->rc", a.double().view(rows, 5, 2), b.double())
    torch.testing.assert_close(torch.from_numpy(out).double(), wanted, atol=1e-5, rtol=1e-5)
