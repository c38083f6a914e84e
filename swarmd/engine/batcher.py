"""Which steps run together in the next microbatch: a choice over what is ready.

Tenants get the same of the machine's time while they want it.

Order within a session, and running what was chosen, are the executor's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmd.core.turns import Turns

MAX_DECODES = 256
MAX_ROWS = 1024
DECODE_ROWS = 4.0
"""Rows of a prompt that take as long as one decode among others, where nothing else is known."""
CREDIT = 256.0
"""Rows that a tenant may lag behind the others when it comes back."""
DEBT = 8192.0
"""Rows that it may be ahead of them."""
PATIENCE = 16
"""Microbatches that may pass over the step that has waited longest, whoever it belongs to."""


@dataclass(slots=True)
class Work:
    """The next step of one session, as far as the choice depends on it."""

    key: bytes
    position: int
    chunks: tuple[int, ...]
    entry: int
    exit: int
    tenant: bytes = b""

    @property
    def rows(self) -> int:
        """Positions to compute."""
        return sum(self.chunks)

    @property
    def is_decode(self) -> bool:
        return self.rows == 1


class Batcher:
    """Chooses microbatches. `ragged` False: a family that runs one session per forward."""

    def __init__(
        self, *, ragged: bool, max_decodes: int = MAX_DECODES, max_rows: int = MAX_ROWS
    ) -> None:
        self._ragged = ragged
        self._max_decodes = max_decodes
        self._max_rows = max_rows
        self._turns = Turns(CREDIT, DEBT)
        self._head = b""
        self._passed = 0

    def choose(
        self,
        ready: Sequence[Work],
        max_decodes: int | None = None,
        decode_rows: float = DECODE_ROWS,
    ) -> list[Work]:
        """Return the works of the next microbatch out of `ready`, longest waiting first.

        The longest waiting work of the tenant that has had least always runs. With it go decodes of
        the same blocks, `max_decodes` in all, and at most one longer step, which is all that a
        decode ever waits for: also of those who have had least. A decode counts as `decode_rows` of
        a prompt. Nothing starves: what has waited longest runs after `PATIENCE` others.
        """
        if not ready:
            return []

        def cost(work: Work) -> float:
            return decode_rows if work.is_decode else float(work.rows)

        if len(ready) == 1:
            self.alone(ready[0].tenant, cost(ready[0]))
            return [ready[0]]
        row = self._turns.in_order(ready, _tenant, cost)
        first, *others = self._at_last(ready[0], row)
        chosen = self._beside(first, others, max_decodes) if self._ragged else [first]
        for work in chosen:
            self._turns.serve(work.tenant, cost(work))
        return chosen

    def alone(self, tenant: bytes, rows: float) -> None:
        """Note a work that has run while no other was ready, and cost so many rows."""
        self._turns.serve_alone(tenant, rows)

    def _at_last(self, head: Work, row: list[Work]) -> list[Work]:
        """Return the row, with what has waited longest in front if that was often passed over."""
        self._passed = self._passed + 1 if head.key == self._head else 0
        self._head = head.key
        if self._passed <= PATIENCE:
            return row
        return [head, *(work for work in row if work is not head)]

    def _beside(self, first: Work, others: list[Work], max_decodes: int | None) -> list[Work]:
        """Return a work with those that run beside it."""
        limit = min(self._max_decodes, max_decodes or self._max_decodes)
        same = [w for w in others if (w.entry, w.exit) == (first.entry, first.exit)]
        chosen, rows = [first], first.rows
        longer = None if first.is_decode else first
        decodes = int(first.is_decode)
        if longer is None:
            room = self._max_rows - rows
            longer = next((w for w in same if not w.is_decode and w.rows <= room), None)
            rows += longer.rows if longer else 0
        for work in same:
            if work is longer:
                chosen.append(work)
            elif work.is_decode and decodes < limit and rows + 1 <= self._max_rows:
                decodes += 1
                rows += 1
                chosen.append(work)
        return chosen


def _tenant(work: Work) -> bytes:
    return work.tenant
