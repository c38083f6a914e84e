"""Sessions' keys and values on one stage, in tiles that sessions may share, and the byte budget.

Which positions are right to keep, and who shares what, is `swarmd.pipeline`'s business; the
arithmetic over them is `swarmd.engine.attention`'s.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from swarmd.core.errors import SessionError
from swarmd.engine.pool import PooledKV, TilePool
from swarmd.engine.tiles import SEGMENT, BlockKV

__all__ = ["SEGMENT", "BlockKV", "KVBudget", "KVSegment", "RaggedCache", "SequenceCache"]

AnyKV = BlockKV | PooledKV


class SequenceCache(Protocol):
    """What a session has left on a stage: positions `[0, length)`."""

    length: int
    """Positions held; set by the stage after each forward."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        ...

    def truncate(self, length: int) -> int:
        """Forget every position from `length` on; return the length that remains.

        It is lower than asked when the state cannot be rewound: 0 means "start again".
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class KVSegment:
    """Positions `[start, end)` of a prefix: tiles that any number of sessions hold and none writes.

    Has the blocks that the session had run which it was frozen from. Its memory goes with the last
    who holds it.
    """

    start: int
    end: int
    blocks: tuple[AnyKV, ...]
    """Of the stage's span; those that the session did not run are empty."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated, once for all who share it."""
        return sum(block.nbytes for block in self.blocks)


class RaggedCache:
    """A session's KV for the ragged path: shared segments, then a tail of its own.

    One `BlockKV` per block of the stage's span; a `PooledKV` where the stage has pools of tiles.
    """

    __slots__ = ("blocks", "frozen", "length")

    def __init__(self, num_blocks: int, pools: Sequence[TilePool] = ()) -> None:
        self.blocks: list[Any] = [PooledKV(pool) for pool in pools]
        """All of one kind, `AnyKV`."""
        self.blocks = self.blocks or [BlockKV() for _ in range(num_blocks)]
        self.length = 0
        self.frozen = 0
        """Positions `[0, frozen)` may be shared and are never written; a multiple of `SEGMENT`."""

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    def freeze(self, start: int, end: int) -> KVSegment:
        """Make positions `[start, end)` a segment, which this session shares from now on.

        Nothing is copied but a last tile that is cut through. Raises SessionError unless `start` is
        a multiple of `SEGMENT`, and all is held.
        """
        if start % SEGMENT or not 0 <= start < end <= self.length:
            raise SessionError(
                f"positions {start} to {end} cannot be shared: a multiple of {SEGMENT} must come "
                f"first, and all must be among the {self.length} positions held"
            )
        whole, rest = divmod(end, SEGMENT)
        self.frozen = max(self.frozen, whole * SEGMENT)
        tiles = start // SEGMENT, whole + bool(rest)
        parts = tuple(block.part(*tiles) for block in self.blocks)
        for part in parts if rest else ():
            if part.tiles:
                part.own(-1)
        return KVSegment(start, end, parts)

    def attach(self, segments: Sequence[KVSegment], length: int = 0) -> None:
        """Begin this session, which holds nothing yet, with a prefix that others have computed.

        It holds the first `length` positions of it; 0: all. Nothing is copied but a last tile that
        is cut through. Raises SessionError when the segments do not follow each other from 0.
        """
        ends = [self.length, *(segment.end for segment in segments)]
        if self.length or ends[:-1] != [segment.start for segment in segments]:
            raise SessionError(
                f"segments that end at {ends[1:]} cannot follow the {self.length} positions held"
            )
        for index, block in enumerate(self.blocks):
            block.keep(0)
            for segment in segments:
                block.extend(segment.blocks[index])
        self.length, self.frozen = ends[-1], -(-ends[-1] // SEGMENT) * SEGMENT
        self.truncate(length or self.length)

    def truncate(self, length: int) -> int:
        """See `SequenceCache`. A shared tile that is cut through becomes a copy."""
        self.length = max(0, min(self.length, length))
        whole, rest = divmod(self.length, SEGMENT)
        for block in self.blocks:
            block.keep(whole + bool(rest))
            if self.length < self.frozen and rest and whole < block.tiles:
                block.own(whole)
        self.frozen = min(self.frozen, whole * SEGMENT)
        return self.length

    def export(self, start: int, end: int) -> list[dict[str, torch.Tensor]]:
        """Return positions `[start, end)` in the neutral form: per block, named tensors.

        Each has the position as its second axis; a block that did not run has none.
        """
        names = ("key", "value")
        return [
            dict(zip(names, block.read(start, end), strict=True)) if block.tiles else {}
            for block in self.blocks
        ]

    def import_(self, start: int, blocks: Sequence[dict[str, torch.Tensor]]) -> None:
        """Take in what `export` gave of the positions from `start`, which is this one's length.

        Raises SessionError when it does not fit.
        """
        counts = {tensor.shape[1] for block in blocks for tensor in block.values()}
        if start != self.length or len(blocks) != len(self.blocks) or len(counts) != 1:
            raise SessionError(
                f"KV from position {start} of {len(blocks)} blocks, lengths {sorted(counts)}, came "
                f"to a session that holds {self.length} positions of {len(self.blocks)} blocks"
            )
        for mine, theirs in zip(self.blocks, blocks, strict=True):
            if theirs:
                mine.write(theirs["key"], theirs["value"], start)
        self.length = start + counts.pop()


class KVBudget:
    """Bytes of KV that sessions may use together. Reserving counts; nothing is allocated.

    Used from the event loop and the compute thread, hence the lock.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._reserved: dict[bytes, int] = {}
        self._used = 0
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """Bytes that no session has reserved."""
        return self.total_bytes - self._used

    @property
    def used_bytes(self) -> int:
        return self._used

    def reserve(self, key: bytes, nbytes: int) -> bool:
        """Set the reservation of `key` to `nbytes`; without room change nothing, return False."""
        with self._lock:
            growth = nbytes - self._reserved.get(key, 0)
            if growth > self.free_bytes:
                return False
            self._reserved[key] = nbytes
            self._used += growth
            return True

    def lacking(self, key: bytes, nbytes: int) -> int:
        """Return how many bytes are missing for a reservation; 0 or less when it would fit."""
        with self._lock:
            return nbytes - self._reserved.get(key, 0) - self.free_bytes

    def release(self, key: bytes) -> int:
        """Drop the reservation of `key`; return the bytes that came free (0 if it had none)."""
        with self._lock:
            held = self._reserved.pop(key, 0)
            self._used -= held
            return held
