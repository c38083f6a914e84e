"""Which steps run together in the next microbatch: a choice over what is ready; tenants take turns.

Order within a session, and running what was chosen, are the executor's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmd.core.turns import Turns

MAX_DECODES = 256
MAX_ROWS = 1024


@dataclass(frozen=True, slots=True)
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
        self._turns, self._prompt_turns = Turns(), Turns()

    def choose(self, ready: Sequence[Work], max_decodes: int | None = None) -> list[Work]:
        """Return the works of the next microbatch out of `ready`, longest waiting first.

        Tenants take turns: the longest waiting work of the one whose turn it is always runs, so
        nothing starves. With it go decodes of the same blocks, `max_decodes` in all, and at most
        one longer step, which is all that a decode ever waits for; for that, too, they take turns.
        """
        if not ready:
            return []
        ready = self._turns.alternate(ready, _tenant)
        first = ready[0]
        self._turns.serve(first.tenant)
        return self._beside(first, ready[1:], max_decodes) if self._ragged else [first]

    def _beside(self, first: Work, others: list[Work], max_decodes: int | None) -> list[Work]:
        """Return a work with those that run beside it."""
        limit = min(self._max_decodes, max_decodes or self._max_decodes)
        same = [w for w in others if (w.entry, w.exit) == (first.entry, first.exit)]
        chosen, rows = [first], first.rows
        longer = None if first.is_decode else first
        decodes = int(first.is_decode)
        if longer is None:
            room = self._max_rows - rows
            prompts = (w for w in same if not w.is_decode and w.rows <= room)
            longer = next(iter(self._prompt_turns.alternate(prompts, _tenant)), None)
            rows += longer.rows if longer else 0
        if longer is not None:
            self._prompt_turns.serve(longer.tenant)
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
