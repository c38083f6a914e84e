"""Sessions that wait for KV: who may try next. Decisions only; nobody in line holds anything."""

from __future__ import annotations

import itertools

MAX_TENANTS = 1024
"""Whose last place is remembered; others come as if for the first time."""


class WaitingLine:
    """Within a priority tenants get the same of the room, each with its first come first; as in
    vLLM, lower numbers go before higher ones.

    Who stands first is waited for, also when others behind would fit: so a large session gets its
    room in the end, however many small ones come. A place is given at arrival: where the line is
    now, or behind the tenant's last session, by as much as that takes. The line goes on by what
    those take who get their room, a part for each tenant that waits, so that also tenants who come
    for the first time, however many, cannot go before somebody for ever.
    """

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[int, float, int]] = {}
        self._tenants: dict[bytes, tuple[bytes, float]] = {}
        """Of those in line, and what each takes."""
        self._next: dict[bytes, float] = {}
        """Tenant -> the place behind its last session."""
        self._now = 0.0
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

    def join(
        self, session: bytes, priority: int, tenant: bytes = b"", positions: float = 1.0
    ) -> None:
        """Stand in line for so much KV; who does already keeps the place."""
        if session not in self._places:
            place = self._places[session] = self._place(priority, tenant)
            self._tenants[session] = tenant, positions
            self._note(tenant, place[1] + positions)

    def leave(self, session: bytes, *, served: bool = False) -> None:
        """Wait no more; `served`: as there was room."""
        waiting = len({tenant for tenant, _ in self._tenants.values()})
        self._places.pop(session, None)
        _, positions = self._tenants.pop(session, (b"", 0.0))
        if served and waiting:
            self._now += positions / waiting
        if not self._places:
            self._now, self._next = 0.0, {}

    def _place(self, priority: int, tenant: bytes) -> tuple[int, float, int]:
        return priority, max(self._now, self._next.get(tenant, self._now)), next(self._count)

    def _note(self, tenant: bytes, behind: float) -> None:
        self._next[tenant] = behind
        if len(self._next) > MAX_TENANTS:
            waiting = {tenant for tenant, _ in self._tenants.values()}
            self._next = {key: at for key, at in self._next.items() if key in waiting}
