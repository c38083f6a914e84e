"""The two ways to run a microbatch through a view: many sessions in one row, or one by one.

`swarmd.engine.probe` finds out whether a model allows the first; the second is transformers' own
path, with transformers' own cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from swarmd.core.errors import ModelError
from swarmd.engine import attention
from swarmd.engine.kv_cache import RaggedCache, SequenceCache
from swarmd.engine.module_state import Saved
from swarmd.engine.one_session import OneSessionCache
from swarmd.engine.pool import make_pools
from swarmd.engine.view import View


@dataclass(slots=True)
class Segment:
    """`length` consecutive rows of a batch: positions from `position` of the session of `cache`."""

    cache: SequenceCache
    position: int
    length: int

    @property
    def end(self) -> int:
        return self.position + self.length


MIN_ROWS = 2
"""Rows that a linear sees at least."""


class Runner(Protocol):
    """Runs rows through a view, each segment against its own session."""

    ragged: bool

    def new_cache(self) -> SequenceCache:
        """Return an empty cache that this runner understands."""
        ...

    def run(
        self, view: View, rows: torch.Tensor, segments: tuple[Segment, ...], keep: tuple[int, ...]
    ) -> torch.Tensor:
        """Run ids (total,) or hidden states (total, hidden_size).

        Returns hidden states (total, hidden_size), or logits (len(keep), vocab_size) of the rows
        `keep` where the view makes logits. Does not advance the caches' lengths.
        """
        ...


class RaggedRunner:
    """All segments end to end in one row, through `swarmd.engine.attention`."""

    ragged = True

    def __init__(self, first_block: int, num_blocks: int, device: torch.device) -> None:
        self._first_block, self._num_blocks = first_block, num_blocks
        self._pools = make_pools(num_blocks, device)

    def new_cache(self) -> SequenceCache:
        return RaggedCache(self._num_blocks, self._pools)

    def run(
        self, view: View, rows: torch.Tensor, segments: tuple[Segment, ...], keep: tuple[int, ...]
    ) -> torch.Tensor:
        context = attention.RowContext(_row_segments(segments), view.entry - self._first_block)
        positions = [p for segment in segments for p in range(segment.position, segment.end)]
        with attention.row_context(context):
            return run_row(view, rows, positions, keep)


def run_row(
    view: View, rows: torch.Tensor, positions: list[int], keep: tuple[int, ...]
) -> torch.Tensor:
    """Run one row of rows at the given positions, never fewer than `MIN_ROWS` at a time.

    A linear over a single row computes other bits than over two or more, and a replay must compute
    the bits of the first time, whatever shared a row with it then. The second row is a copy and
    belongs to no segment, so it touches no session; being a copy, it changes nothing that depends
    on all rows, such as the choice of experts.
    """
    total = len(positions)
    if total < MIN_ROWS:
        rows = rows.expand(MIN_ROWS, *rows.shape[1:])
        positions = positions * MIN_ROWS
    kept = keep * MIN_ROWS if len(keep) == 1 else keep
    output = view.run(
        rows[None],
        position_ids=torch.tensor([positions], device=rows.device),
        use_cache=False,
        logits_to_keep=torch.tensor(kept, dtype=torch.long, device=rows.device),
    )[0]
    if not view.makes_logits:
        return output[:total]
    return output[: len(keep)] if view.keeps_rows else output[list(keep)]


def _row_segments(segments: tuple[Segment, ...]) -> list[attention.RowSegment]:
    made, start = [], 0
    for segment in segments:
        assert isinstance(segment.cache, RaggedCache)
        made.append(attention.RowSegment(segment.cache, segment.position, start, segment.length))
        start += segment.length
    return made


class SingleRunner:
    """One segment per forward, with transformers' own cache.

    Some families forget their state when a chunk of several rows continues a sequence, in
    transformers itself; for those (`chunks` False) such a chunk runs row by row.
    """

    ragged = False

    def __init__(self, *, chunks: bool = True) -> None:
        self._chunks = chunks

    def new_cache(self) -> SequenceCache:
        return OneSessionCache()

    def run(
        self, view: View, rows: torch.Tensor, segments: tuple[Segment, ...], keep: tuple[int, ...]
    ) -> torch.Tensor:
        outputs, start = [], 0
        for segment in self._pieces(segments):
            assert isinstance(segment.cache, OneSessionCache)
            end = start + segment.length
            kept = tuple(row - start for row in keep if start <= row < end)
            outputs.append(_run_alone(view, rows[start:end], segment.cache, segment, kept))
            start = end
        return torch.cat(outputs)

    def _pieces(self, segments: tuple[Segment, ...]) -> Iterator[Segment]:
        for segment in segments:
            if self._chunks or segment.position == 0:
                yield segment
            else:
                for position in range(segment.position, segment.end):
                    yield Segment(segment.cache, position, 1)


def _run_alone(
    view: View, rows: torch.Tensor, cache: OneSessionCache, segment: Segment, keep: tuple[int, ...]
) -> torch.Tensor:
    """Run one segment as `transformers.generate` would."""
    if cache.stretch not in (None, (view.entry, view.exit)):
        raise ModelError(
            f"this session ran blocks {cache.stretch} here; its state cannot go on with others"
        )
    if cache.state is None:
        output = _start_alone(view, rows, segment, keep, cache)
    else:
        output = _forward_alone(view, rows, segment, keep, cache.state, cache.left_on_modules)
    cache.left_on_modules = view.left_on_modules
    cache.stretch = (view.entry, view.exit)
    if not view.makes_logits:
        return output
    return output if view.keeps_rows else output[list(keep)]


def _start_alone(
    view: View, rows: torch.Tensor, segment: Segment, keep: tuple[int, ...], cache: OneSessionCache
) -> torch.Tensor:
    """Run a session's first segment with the cache that `generate` would make, or the model's own.

    A cache of recurrent layers only cannot count positions, though some models ask it to: a layer
    that no block uses stands in.
    """
    made: Any = DynamicCache(config=view.config)
    if made.layers and not any(isinstance(layer, CacheLayerMixin) for layer in made.layers):
        made.layers.append(DynamicLayer())
    try:
        output = _forward_alone(view, rows, segment, keep, made, [])
        cache.state = made
    except ValueError:
        output = _forward_alone(view, rows, segment, keep, None, [])
        cache.state = view.made_cache
    return output


def _forward_alone(
    view: View,
    rows: torch.Tensor,
    segment: Segment,
    keep: tuple[int, ...],
    cache: Any,
    left_on_modules: Saved,
) -> torch.Tensor:
    positions = torch.arange(segment.position, segment.end, device=rows.device)[None]
    return view.run(
        rows[None],
        left_on_modules,
        use_cache=True,
        position_ids=positions,
        logits_to_keep=torch.tensor(keep, dtype=torch.long, device=rows.device),
        **{view.cache_argument: cache},
    )[0]
