"""The stage's KV budget as the hop table sees it: positions over some blocks, counted in bytes."""

from __future__ import annotations

from swarmd.core.span import Span
from swarmd.engine.kv_cache import SEGMENT
from swarmd.engine.stage import Stage

UNBOUNDED = 1 << 31
"""Positions of a recurrent stage, whose state has the same size at any length."""


class StageAccount:
    """Reservations in the KV budget of one stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def reserve(self, session: bytes, blocks: Span, positions: int) -> bool:
        """Set the reservation of a session; False, and no change, when it does not fit."""
        return self._stage.budget.reserve(session, self.size(blocks, positions))

    def lacking(self, session: bytes, blocks: Span, positions: int) -> int:
        """Bytes that are missing for such a reservation; 0 or less when it would fit."""
        return self._stage.budget.lacking(session, self.size(blocks, positions))

    def size(self, blocks: Span, positions: int) -> int:
        """Bytes of KV that so many positions take over these blocks."""
        return self._stage.kv_bytes(positions, blocks.start, blocks.end)

    def release(self, session: bytes) -> None:
        """Give a session's reservation back."""
        self._stage.budget.release(session)

    def capacity(self, blocks: Span) -> int:
        """Positions over `blocks` that an empty budget holds."""
        fixed = self._stage.kv_bytes(0, blocks.start, blocks.end)
        room = self._stage.budget.total_bytes - fixed
        per_token = self._stage.kv_bytes_per_token * len(blocks) / len(self._stage.span)
        if room < 0:
            return 0
        if not per_token:
            return UNBOUNDED
        positions = int(room / per_token)
        return positions // SEGMENT * SEGMENT if self._stage.ragged else positions

    def free_bytes(self) -> int:
        """Bytes that are not reserved."""
        return self._stage.budget.free_bytes
