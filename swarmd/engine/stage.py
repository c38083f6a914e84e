"""A span of blocks, loaded: takes microbatches of steps and returns hidden states or logits.

What runs together is `swarmd.engine.batcher`'s decision; drawing tokens from logits is
`swarmd.engine.sampler`'s. Used from one compute thread at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from swarmd.core.errors import ModelError, SessionError
from swarmd.core.frames import DType
from swarmd.core.peers import ModelInfo
from swarmd.core.span import Span
from swarmd.engine import attention
from swarmd.engine.kv_cache import SEGMENT, KVBudget, SequenceCache
from swarmd.engine.layout import Layout
from swarmd.engine.runners import RaggedRunner, Runner, Segment, SingleRunner
from swarmd.engine.view import View

__all__ = ["Batch", "Segment", "Stage"]

WIRE_DTYPES = {
    torch.float32: DType.FLOAT32,
    torch.bfloat16: DType.BFLOAT16,
    torch.float16: DType.FLOAT16,
}


@dataclass(slots=True)
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
        self.replay_exact = False
        """Whether a replay, chunk by chunk, gives the bits of the first time. Set by the probe."""
        self.chunk_exact = False
        """Whether a prompt gives the same bits in whatever chunks it comes. Set by the probe."""
        self.precision = ""
        """What it computes in, as others are told (`swarmd.engine.precision`). Set at load."""
        self.kv_bytes_per_token = 0
        """Over the whole span; a session that runs fewer blocks takes its share."""
        self.kv_bytes_fixed = 0
        """What a session takes however short it is: the state of recurrent blocks."""
        self.kv_sizes: tuple[tuple[int, int, int] | None, ...] = ()
        """For each block its KV heads, and the widths of a key and of a value; None for a block
        without KV of its own. Where sessions share forwards; otherwise empty."""
        self.budget = KVBudget(0)
        self.ragged_reason = ""
        """Why sessions do not share forwards, or empty."""
        self.chunked_prefill = True
        """Whether a prompt may come in chunks; if not, one that does is computed row by row."""
        self.runner: Runner = RaggedRunner(span.start, len(span), device)
        self._views: dict[tuple[int, int, bool], View] = {}

    def unload(self) -> None:
        """Give the weights back: nothing can be computed any more, but what it was can be read."""
        self.model = nn.Module()
        self._views.clear()
        self.runner = SingleRunner()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def ragged(self) -> bool:
        """Whether several sessions can share a forward."""
        return self.runner.ragged

    @property
    def shares_prefixes(self) -> bool:
        """Whether the caches of sessions can be frozen into segments and attached."""
        return self.runner.ragged

    def run_one_by_one(self, reason: str, *, chunks: bool = True) -> None:
        """Give every session a forward of its own from now on. Caches made before are void.

        Without `chunks`, several rows that continue a session run one at a time.
        """
        self.runner = SingleRunner(chunks=chunks)
        self.ragged_reason = reason
        self.chunked_prefill = chunks

    def new_cache(self) -> SequenceCache:
        """Return an empty cache for one session."""
        return self.runner.new_cache()

    def kv_bytes(self, positions: int, entry: int, exit: int) -> int:
        """Bytes of KV that a session needs for so many positions of blocks `[entry, exit)`.

        Where sessions share forwards memory is taken in tiles, so a tile begun counts as a whole.
        """
        if self.ragged:
            positions = -(-positions // SEGMENT) * SEGMENT
        whole = self.kv_bytes_fixed + positions * self.kv_bytes_per_token
        return -(-whole * (exit - entry) // len(self.span))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Run a microbatch and advance the caches of its sessions.

        Returns hidden states (total, hidden_size) in the stage's dtype, or, when the batch exits at
        the model's end, logits (len(logits_at), vocab_size) in float32. Raises ModelError when
        the blocks asked for are not in the span, SessionError when rows or positions do not fit the
        sessions. After any error no cache has advanced.
        """
        view = self.view(batch.entry, batch.exit)
        self._check_positions(batch)
        rows = self._rows(batch)
        with torch.inference_mode():
            output = self.runner.run(view, rows, batch.segments, batch.logits_at)
        output = output.float() if view.makes_logits else output
        if self.device.type == "cuda":
            # Until here it has only been launched: errors and times are to be this batch's.
            torch.cuda.current_stream(self.device).synchronize()
        for segment in batch.segments:
            segment.cache.length = segment.end
        return output

    def forward_plain(self, rows: torch.Tensor) -> torch.Tensor:
        """Run the whole span on whole sequences, without caches, so that gradients can flow.

        `rows` is (batch, n) int64 on the first stage, else (batch, n, hidden_size). Returns hidden
        states (batch, n, hidden_size), or logits (batch, n, vocab_size) on the last stage.
        """
        view = self.view(self.span.start, self.span.end, plain=True)
        positions = torch.arange(rows.shape[1], device=self.device)[None]
        return view.run(rows.to(self.device), position_ids=positions, use_cache=False)

    def view(self, entry: int, exit: int, *, plain: bool = False) -> View:
        """Return the runnable blocks `[entry, exit)`; `plain` with the model's own attention.

        Raises ModelError outside the span.
        """
        plain = plain or not self.ragged
        found = self._views.get((entry, exit, plain))
        if found is None:
            if not self.span.start <= entry < exit <= self.span.end:
                raise ModelError(f"blocks {entry}:{exit} are not within this stage's {self.span}")
            name = None if plain else attention.NAME
            found = View(self.model, self.layout, self.span, entry, exit, name)
            self._views[entry, exit, plain] = found
        return found

    def _check_positions(self, batch: Batch) -> None:
        """Every segment must begin where its session ends, or it would read what nobody wrote."""
        ends: dict[int, int] = {}
        for segment in batch.segments:
            held = ends.get(id(segment.cache), segment.cache.length)
            if segment.position != held or segment.length < 1:
                raise SessionError(
                    f"a step of {segment.length} at position {segment.position} came to a session "
                    f"that holds {held} positions"
                )
            if segment.end > self.info.max_model_len:
                raise SessionError(
                    f"position {segment.end - 1} is beyond the {self.info.max_model_len} that this "
                    "model is served for"
                )
            ends[id(segment.cache)] = segment.end

    def _rows(self, batch: Batch) -> torch.Tensor:
        """Return the batch's input on the device. Raises SessionError if it does not fit."""
        rows = batch.token_ids if batch.entry == 0 else batch.hidden
        wanted = (batch.total,) if batch.entry == 0 else (batch.total, self.hidden_size)
        if rows is None or tuple(rows.shape) != wanted:
            got = None if rows is None else tuple(rows.shape)
            raise SessionError(f"a batch for block {batch.entry} needs rows {wanted}, not {got}")
        if batch.entry > 0:
            return rows.to(self.device, self.dtype)
        least, most = torch.aminmax(rows)
        if least < 0 or most >= self.info.vocab_size:
            raise SessionError(
                f"token ids {int(least)} to {int(most)} came; the model has 0 to "
                f"{self.info.vocab_size - 1}"
            )
        return rows.to(self.device, torch.long)
