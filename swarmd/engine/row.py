"""What attention must know of the batch in flight: whose rows lie where in it.

Put there by `swarmd.engine.runners`, read by `swarmd.engine.attention`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch

from swarmd.engine.kv_cache import RaggedCache


@dataclass(slots=True)
class RowSegment:
    """Rows `[start, start + length)` of the batch: positions `[position, position + length)`."""

    cache: RaggedCache
    position: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.position + self.length


@dataclass(slots=True)
class RowContext:
    """What the attention function must know of a batch; made once per forward, not per block."""

    segments: list[RowSegment]
    block_offset: int
    """Index, within the caches, of the first block that runs."""
    masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)
    plans: dict[int, Any] = field(default_factory=dict)
    """By the number of heads per KV head: see `swarmd.engine.tile_attention`."""
    calls: list[int] = field(default_factory=list)
    """The `layer_idx` of every call, in order: the probe reads it."""
    tiled: int = 0
    """How many of the calls the kernel answered, for all segments at once."""
    masked: bool = False
    """Whether a block came with a mask of its own, which is not looked at: the probe refuses."""


class _Slot(threading.local):
    """The batch in flight on this thread; some families drop keyword arguments on the way."""

    context: RowContext | None = None


_slot = _Slot()


class row_context:
    """Context manager that puts a batch into the slot for the duration of one forward."""

    __slots__ = ("_context",)

    def __init__(self, context: RowContext) -> None:
        self._context = context

    def __enter__(self) -> RowContext:
        _slot.context = self._context
        return self._context

    def __exit__(self, *_: object) -> None:
        _slot.context = None


def current() -> RowContext:
    """Return the batch in flight on this thread."""
    if _slot.context is None:
        raise RuntimeError("ragged attention was called outside a batch")
    return _slot.context
