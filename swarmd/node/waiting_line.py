"""Sessions that wait for KV: who may try next. Decisions only; nobody in line holds anything."""

from __future__ import annotations

import itertools

MAX_TENANTS = 1024
"""Whose last place is remembered; others come as if for the first time."""


class WaitingLine:
    """Within a priority tenants take turns, each with its first come first; as in vLLM, lower
    numbers go before higher ones.

    Who stands first is waited for, also when others behind would fit: so a large session gets its
    room in the end, however many small ones come. A place is given at arrival: the round of turns
    that is served now, or the one after that of the tenant's last session. A round counts as over,
    by a part of it, whenever one of those who wait has got its room, so that also tenants who come
    for the first time, however many, cannot go before somebody for ever.
    """

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[int, float, int]] = {}
        self._tenants: dict[bytes, bytes] = {}
        """Of those in line."""
        self._last: dict[bytes, float] = {}
        """Tenant -> the round of its last session."""
        self._round = 0.0
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def first(self) -> bytes | None:
        """Who may try next."""
        return min(self._places, key=self._places.__getitem__, default=None)

    def ahead_of(self, session: bytes, priority: int, tenant: bytes = b"") -> int:
        """Return how many go before a session, whether it stands in line or not."""
        mine = self._places.get(session) or self._place(priority, tenant)
        return sum(place < mine for place in self._places.values())

    def join(self, session: bytes, priority: int, tenant: bytes = b"") -> None:
        """Stand in line; who does already keeps the place."""
        if session not in self._places:
            place = self._places[session] = self._place(priority, tenant)
            self._tenants[session] = tenant
            self._note(tenant, place[1])

    def leave(self, session: bytes, *, served: bool = False) -> None:
        """Wait no more; `served`: as there was room."""
        waiting = len(set(self._tenants.values()))
        place = self._places.pop(session, None)
        self._tenants.pop(session, None)
        if place is not None and served:
            self._round += 1 / waiting
        if not self._places:
            self._round, self._last = 0.0, {}

    def _place(self, priority: int, tenant: bytes) -> tuple[int, float, int]:
        turn = max(self._round, self._last.get(tenant, self._round - 1) + 1)
        return priority, turn, next(self._count)

    def _note(self, tenant: bytes, turn: float) -> None:
        self._last[tenant] = turn
        if len(self._last) > MAX_TENANTS:
            waiting = set(self._tenants.values())
            self._last = {key: at for key, at in self._last.items() if key in waiting}
