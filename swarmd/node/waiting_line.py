"""Sessions that wait for KV: who may try next. Decisions only; nobody in line holds anything."""

from __future__ import annotations

import itertools


class WaitingLine:
    """First come, first served within a priority; lower numbers go before higher ones, as in vLLM.

    Who stands first is waited for, also when others behind would fit: so a large session gets its
    room in the end, however many small ones come.
    """

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[int, int]] = {}
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def first(self) -> bytes | None:
        """Who may try next."""
        return min(self._places, key=self._places.__getitem__, default=None)

    def ahead_of(self, session: bytes, priority: int) -> int:
        """Return how many go before a session, whether it stands in line or not."""
        mine = self._places.get(session, (priority, next(self._count)))
        return sum(place < mine for place in self._places.values())

    def join(self, session: bytes, priority: int) -> None:
        """Stand in line; who does already keeps the place."""
        self._places.setdefault(session, (priority, next(self._count)))

    def leave(self, session: bytes) -> None:
        """Wait no more."""
        self._places.pop(session, None)
