"""The stage's KV budget as the hop table sees it: positions over some blocks, counted in bytes."""

from __future__ import annotations

from swarmd.core.span import Span
from swarmd.engine.kv_cache import KVBudget


class StageAccount:
    """Reservations of one stage. `bytes_per_token` is over the whole span."""

    def __init__(self, budget: KVBudget, span: Span, bytes_per_token: int) -> None:
        self._budget = budget
        self._per_block = bytes_per_token / len(span)

    def reserve(self, session: bytes, blocks: Span, positions: int) -> bool:
        """Set the reservation of a session; False, and no change, when it does not fit."""
        return self._budget.reserve(session, self._bytes(blocks, positions))

    def release(self, session: bytes) -> None:
        """Give a session's reservation back."""
        self._budget.release(session)

    def capacity(self, blocks: Span) -> int:
        """Positions over `blocks` that an empty budget holds."""
        per_position = self._per_block * len(blocks)
        if per_position == 0:  # a recurrent stage keeps the same state at any length
            return 1 << 31
        return int(self._budget.total_bytes / per_position)

    def free_bytes(self) -> int:
        """Bytes that are not reserved."""
        return self._budget.free_bytes

    def _bytes(self, blocks: Span, positions: int) -> int:
        return int(self._per_block * len(blocks) * positions)
