"""The ragged attention function, both ways, against attention spelled out, one row at a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from swarmd.engine import attention, tile_attention
from swarmd.engine.attention import RowContext, RowSegment, ragged_attention, row_context
from swarmd.engine.kv_cache import RaggedCache

HEADS, WIDTH = 4, 8


class Block(torch.nn.Module):
    layer_idx = 0


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **rule: Any) -> torch.Tensor:
    """Causal attention of one whole sequence (heads, n, width), row by row in float64."""
    groups = query.shape[0] // key.shape[0]
    outputs = []
    for head in range(query.shape[0]):
        keys, values = key[head // groups].double(), value[head // groups].double()
        for row in range(query.shape[1]):
            window = rule.get("sliding_window") or row + 1
            begin = max(0, row + 1 - window)
            scores = keys[begin : row + 1] @ query[head, row].double()
            scores = scores * (rule.get("scaling") or WIDTH**-0.5)
            if cap := rule.get("softcap"):
                scores = cap * torch.tanh(scores / cap)
            if (sinks := rule.get("s_aux")) is not None:
                scores = torch.cat([scores, sinks[head].double()[None]])
                values_seen = torch.cat([values[begin : row + 1], torch.zeros(1, values.shape[1])])
            else:
                values_seen = values[begin : row + 1]
            outputs.append(scores.softmax(0) @ values_seen)
    return torch.stack(outputs).view(query.shape[0], query.shape[1], -1).float()


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend segment by segment."""
    monkeypatch.setattr(tile_attention, "usable", lambda *_: False)


@pytest.fixture(params=["tiled", "plain"])
def way(request: pytest.FixtureRequest) -> str:
    """Both ways to attend."""
    if request.param == "plain":
        request.getfixturevalue("plainly")
    elif tile_attention.kernel is None:
        pytest.skip("no numba on this machine")
    return str(request.param)


RULES: list[dict[str, Any]] = [
    {},
    {"scaling": 0.5},
    {"sliding_window": 5},
    {"sliding_window": 1},
    {"sliding_window": 1000},
    {"softcap": 2.0},
    {"softcap": 2.0, "sliding_window": 6},
    {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0]), "sliding_window": 7, "scaling": 0.3},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "+".join(rule) or "plain")
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("value_width", [8, 5])
def test_each_segment_sees_its_own_past_and_nothing_else(
    rule: dict[str, Any], kv_heads: int, value_width: int, way: str
) -> None:
    lengths = {"a": 23, "b": 9, "c": 14}
    generator = torch.Generator().manual_seed(3)

    def draw(heads: int, count: int, width: int) -> torch.Tensor:
        return torch.randn(heads, count, width, generator=generator)

    made = {
        name: (draw(HEADS, n, WIDTH), draw(kv_heads, n, WIDTH), draw(kv_heads, n, value_width))
        for name, n in lengths.items()
    }
    caches = {name: RaggedCache(1) for name in lengths}
    got: dict[str, list[torch.Tensor]] = {name: [] for name in lengths}
    for batch in (
        [("a", 10)],
        [("b", 1), ("a", 1), ("c", 8)],
        [("a", 7), ("b", 1)],
        [("b", 5), ("c", 1), ("c", 1), ("c", 1)],
        [("c", 3), ("a", 5), ("b", 1), ("b", 1)],
    ):
        segments, pieces, start = [], [], 0
        for name, count in batch:
            position = caches[name].length
            segments.append(RowSegment(caches[name], position, start, count))
            pieces.append([part[:, position : position + count] for part in made[name]])
            caches[name].length += count
            start += count
        query, key, value = (torch.cat(parts, 1)[None] for parts in zip(*pieces, strict=True))
        with row_context(RowContext(segments, 0)) as context:
            out, _ = ragged_attention(Block(), query, key, value, None, **rule)
        assert context.tiled == (way == "tiled")
        assert out.shape == (1, start, HEADS, value_width)
        for segment, (name, count) in zip(segments, batch, strict=True):
            got[name].append(out[0, segment.start : segment.start + count].transpose(0, 1))
    for name, (query, key, value) in made.items():
        torch.testing.assert_close(torch.cat(got[name], 1), plain(query, key, value, **rule))


@pytest.mark.usefixtures("way")
def test_rows_of_no_segment_touch_nothing() -> None:
    cache = RaggedCache(1)
    query, key, value = (torch.randn(1, HEADS, 3, WIDTH) for _ in range(3))
    with row_context(RowContext([RowSegment(cache, 0, 0, 1)], 0)):
        out, _ = ragged_attention(Block(), query, key, value, None)
    assert torch.equal(out[:, 1:], torch.zeros(1, 2, HEADS, WIDTH))
    assert torch.equal(cache.blocks[0].read(0, 1)[0], key[0, :, :1])
    assert not cache.blocks[0].read(1, 64)[0].any()


@pytest.mark.usefixtures("plainly")
def test_scores_are_made_in_slices_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.randn(1, HEADS, 40, WIDTH) for _ in range(3))

    def run() -> torch.Tensor:
        with row_context(RowContext([RowSegment(RaggedCache(1), 0, 0, 40)], 0)):
            return ragged_attention(Block(), query, key, value, None, softcap=3.0)[0]

    wanted = run()
    widths: list[int] = []
    rows = attention._spelled_out_rows
    monkeypatch.setattr(
        attention, "_spelled_out_rows", lambda q, *a: (widths.append(q.shape[2]), rows(q, *a))[1]
    )
    monkeypatch.setattr(attention, "MAX_SCORES", HEADS * 40 * 7)
    torch.testing.assert_close(run(), wanted)
    assert widths == [7, 7, 7, 7, 7, 5]


@pytest.mark.usefixtures("plainly")
def test_masks_are_made_once_per_batch_not_once_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = attention.causal_mask
    monkeypatch.setattr(attention, "causal_mask", lambda *a: (made.append(1), original(*a))[1])
    cache = RaggedCache(6)
    query, key, value = (torch.randn(1, HEADS, 4, WIDTH) for _ in range(3))
    for position in (0, 4):
        with row_context(RowContext([RowSegment(cache, position, 0, 4)], 0)):
            for number in range(6):
                block = Block()
                block.layer_idx = number
                ragged_attention(block, query, key, value, None)
    assert len(made) == 1


def test_outside_a_batch_it_refuses() -> None:
    query = torch.randn(1, HEADS, 2, WIDTH)
    with pytest.raises(RuntimeError, match="outside a batch"):
        ragged_attention(Block(), query, query, query, None)
    with row_context(RowContext([], 0)):
        pass
    with pytest.raises(RuntimeError, match="outside a batch"):
        attention.current()


def test_batches_of_two_threads_do_not_meet() -> None:
    seen: list[bool] = []

    def other() -> None:
        with row_context(RowContext([], 1)):
            seen.append(attention.current().block_offset == 1)

    with row_context(RowContext([], 0)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert attention.current().block_offset == 0
    assert seen == [True]
