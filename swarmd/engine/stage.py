"""A span of blocks, loaded: takes microbatches of steps and returns hidden states or logits.

What runs together is `swarmd.engine.batcher`'s decision; drawing tokens from logits is
`swarmd.engine.sampler`'s. Used from one compute thread at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from swarmd.core.errors import ModelError
from swarmd.core.frames import DType
from swarmd.core.peers import ModelInfo
from swarmd.core.span import Span
from swarmd.engine import attention
from swarmd.engine.kv_cache import KVBudget, RaggedCache, SequenceCache
from swarmd.engine.layout import Layout
from swarmd.engine.view import View

WIRE_DTYPES = {
    torch.float32: DType.FLOAT32,
    torch.bfloat16: DType.BFLOAT16,
    torch.float16: DType.FLOAT16,
}


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` consecutive rows of a batch: positions from `position` of the session of `cache`."""

    cache: SequenceCache
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Steps that run together. Segments lie end to end in the row, `total` rows in all.

    Several segments of one session may follow each other, ascending: each sees only what lies
    before its own end, so a replay of single tokens computes what decoding them did.
    """

    entry: int
    exit: int
    segments: tuple[Segment, ...]
    token_ids: torch.Tensor | None = None
    """(total,) int64, when entry is 0."""
    hidden: torch.Tensor | None = None
    """(total, hidden_size), when entry is not 0."""
    logits_at: tuple[int, ...] = ()
    """Rows whose logits are wanted, when exit is the model's end."""

    @property
    def total(self) -> int:
        return sum(segment.length for segment in self.segments)


class Stage:
    """The blocks of one span with their weights on one device."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        span: Span,
        info: ModelInfo,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.model, self.layout, self.span, self.info = model, layout, span, info
        self.dtype, self.device = dtype, device
        self.is_first = span.start == 0
        self.is_last = span.end == layout.num_blocks
        self.hidden_size = info.hidden_size
        self.wire_dtype = WIRE_DTYPES[dtype]
        self.ragged = True
        self.ragged_reason = ""
        self.replay_exact = False
        self.kv_bytes_per_token = 0
        """Over the whole span; a session that runs fewer blocks takes its share."""
        self.budget = KVBudget(0)
        self._views: dict[tuple[int, int], View] = {}

    def new_cache(self) -> SequenceCache:
        """Return an empty cache for one session."""
        return RaggedCache(len(self.span))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Run a microbatch and advance the caches of its sessions.

        Returns hidden states (total, hidden_size) in the stage's dtype, or, when the batch exits at
        the model's end, logits (len(logits_at), vocab_size) in float32. Raises ModelError when
        the blocks asked for are not in the span or the rows do not fit the segments.
        """
        view = self.view(batch.entry, batch.exit)
        rows = self._rows(batch)
        context = attention.RowContext(_row_segments(batch), batch.entry - self.span.start)
        with torch.inference_mode(), attention.row_context(context):
            return self._finish(view, batch, self._run(view, batch, _at_least_two(rows)))

    def _run(self, view: View, batch: Batch, rows: torch.Tensor) -> torch.Tensor:
        positions = torch.tensor([_positions(batch, rows.shape[1])], device=self.device)
        keep = torch.tensor(_at_least_two_of(batch.logits_at), dtype=torch.long, device=self.device)
        return view.run(rows, position_ids=positions, use_cache=False, logits_to_keep=keep)

    def _finish(self, view: View, batch: Batch, output: torch.Tensor) -> torch.Tensor:
        for segment in batch.segments:
            segment.cache.length = segment.position + segment.length  # type: ignore[misc]
        if not view.makes_logits:
            return output[0, : batch.total]
        if view.keeps_rows:
            return output[0, : len(batch.logits_at)].float()
        return output[0, list(batch.logits_at)].float()

    def forward_plain(self, rows: torch.Tensor) -> torch.Tensor:
        """Run the whole span on whole sequences, without caches, so that gradients can flow.

        `rows` is (batch, n) int64 on the first stage, else (batch, n, hidden_size). Returns hidden
        states (batch, n, hidden_size), or logits (batch, n, vocab_size) on the last stage.
        """
        view = self.view(self.span.start, self.span.end)
        positions = torch.arange(rows.shape[1], device=self.device)[None]
        return view.run(rows.to(self.device), position_ids=positions, use_cache=False)

    def view(self, entry: int, exit: int) -> View:
        """Return the runnable blocks `[entry, exit)`. Raises ModelError outside the span."""
        found = self._views.get((entry, exit))
        if found is None:
            if not self.span.start <= entry < exit <= self.span.end:
                raise ModelError(f"blocks {entry}:{exit} are not within this stage's {self.span}")
            found = View(self.model, self.layout, self.span, entry, exit)
            self._views[entry, exit] = found
        return found

    def _rows(self, batch: Batch) -> torch.Tensor:
        """Return the batch's input with a leading 1. Raises ModelError if it does not fit."""
        rows = batch.token_ids if batch.entry == 0 else batch.hidden
        if rows is None or rows.shape[0] != batch.total:
            raise ModelError(f"a batch of {batch.total} rows came with another number of them")
        if batch.entry == 0:
            return rows[None].to(self.device)
        return rows[None].to(self.device, self.dtype)


def _row_segments(batch: Batch) -> list[attention.RowSegment]:
    segments, start = [], 0
    for segment in batch.segments:
        assert isinstance(segment.cache, RaggedCache)
        segments.append(
            attention.RowSegment(segment.cache, segment.position, start, segment.length)
        )
        start += segment.length
    return segments


def _positions(batch: Batch, rows: int) -> list[int]:
    positions: list[int] = []
    for segment in batch.segments:
        positions.extend(range(segment.position, segment.position + segment.length))
    positions.extend(positions[-1:] * (rows - len(positions)))
    return positions


def _at_least_two(rows: torch.Tensor) -> torch.Tensor:
    """Double a single row: a linear over one row computes other bits than over two or more.

    The copy belongs to no segment, so it touches no session; being a copy, it changes nothing that
    depends on all rows, such as the choice of experts.
    """
    return rows if rows.shape[1] > 1 else rows.repeat_interleave(2, dim=1)


def _at_least_two_of(logits_at: tuple[int, ...]) -> tuple[int, ...]:
    return logits_at if len(logits_at) != 1 else logits_at * 2
