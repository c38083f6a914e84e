"""Which steps run together in the next microbatch: a pure choice over what is ready.

Order within a session, and running what was chosen, are the executor's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def choose(self, ready: Sequence[Work], max_decodes: int | None = None) -> list[Work]:
        """Return the works of the next microbatch out of `ready`, longest waiting first.

        The one that has waited longest is always among them, so nothing starves. With it go decodes
        of the same blocks, `max_decodes` in all, and at most one longer step, which is all that a
        decode ever waits for.
        """
        limit = min(self._max_decodes, max_decodes or self._max_decodes)
        if not ready:
            return []
        first = ready[0]
        if not self._ragged:
            return [first]
        chosen, rows = [first], first.rows
        longer = not first.is_decode
        decodes = int(first.is_decode)
        for work in ready[1:]:
            fits = rows + work.rows <= self._max_rows
            if (work.entry, work.exit) != (first.entry, first.exit) or not fits:
                continue
            if work.is_decode and decodes < limit:
                decodes += 1
            elif not work.is_decode and not longer:
                longer = True
            else:
                continue
            chosen.append(work)
            rows += work.rows
        return chosen
