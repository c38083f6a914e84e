"""How long sessions stay without a sign of their coordinator, and reservations without use.

Freeing those whose time is over is `hop.HopTable`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarmd.core.clock import earliest
from swarmd.pipeline.hop_session import HopSession
from swarmd.pipeline.hop_values import HopCounters, HopPolicy


class Lapses:
    """When to look at the sessions of a hop table again, and whose time is over then."""

    def __init__(self, counters: HopCounters, policy: HopPolicy) -> None:
        self.due: float | None = None
        """When to call `over` at the latest."""
        self._counters = counters
        self._policy = policy

    def opened(self, session: HopSession, now: float, *, unused: bool) -> None:
        """A session was opened; one that is `unused` yet is only reserved."""
        session.seen_at = now
        if unused:
            session.lapses_at = now + self._policy.reservation
        self._remind(session)

    def used(self, session: HopSession, now: float) -> None:
        """Its coordinator was heard of."""
        session.lapses_at = None
        session.seen_at = now

    def look_by(self, when: float | None) -> None:
        """Look no later than that."""
        self.due = earliest(self.due, when)

    def over(self, sessions: Iterable[HopSession], now: float) -> list[HopSession]:
        """Return those whose time is over; when to look again is known by then."""
        gone = []
        self.due = None
        for session in sessions:
            if session.lapses_at is not None and session.lapses_at <= now:
                self._counters.lapsed += 1
                gone.append(session)
            elif session.seen_at + self._policy.orphan_grace <= now:
                self._counters.orphaned += 1
                gone.append(session)
            else:
                self._remind(session)
        return gone

    def _remind(self, session: HopSession) -> None:
        orphaned_at = session.seen_at + self._policy.orphan_grace
        self.due = earliest(self.due, orphaned_at, session.lapses_at)
