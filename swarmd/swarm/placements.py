"""What a coordinator has given to peers since they last said how busy they are.

Announcements are old by seconds. Without this, a crowd of sessions that starts within one of them
would all go to the peer that was idle before. Counting is all that happens here; what load costs is
`swarm.terms`'s business.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from swarmd.core.peers import Announcement
from swarmd.core.route import Hop
from swarmd.swarm.view import View

SETTLE_S = 0.25
"""An announcement that is younger than a placement by this shows it: opening takes a while."""
UNSEEN_S = 3.0
"""After so long a load counts as seen: a peer announces no change that is small, or over again."""


@dataclass(frozen=True, slots=True)
class Load:
    """Sessions, and the bytes of KV that they take."""

    sessions: int = 0
    kv_bytes: int = 0


NOTHING = Load()


@dataclass(frozen=True, slots=True)
class _Placed:
    peer_id: str
    at: float
    sessions: int
    """1, or -1 for one that has ended."""
    kv_bytes: int
    """Negative where it has come free."""


class Placements:
    """Hops that were handed out lately. `now` is wall time in seconds, as in announcements.

    A peer whose clock is wrong is believed to be busy for too long or too short a time, by as much.
    """

    def __init__(self) -> None:
        self._placed: deque[_Placed] = deque()

    def add(self, route: Iterable[Hop], positions: int, view: View, now: float) -> None:
        """Note that a session of so many positions goes over these hops."""
        self._note(route, 1, positions, view, now)

    def end(self, route: Iterable[Hop], positions: int, view: View, now: float) -> None:
        """Note that such a session has ended: what it held is free before that is announced."""
        self._note(route, -1, positions, view, now)

    def _note(
        self, route: Iterable[Hop], sessions: int, positions: int, view: View, now: float
    ) -> None:
        for hop in route:
            peer = view.peer(hop.peer_id)
            if peer is not None:
                kv_bytes = sessions * _kv_bytes(peer, hop, positions)
                self._placed.append(_Placed(hop.peer_id, now, sessions, kv_bytes))

    def forget(self, peer_id: str) -> None:
        """Note that what was placed on a peer is not there any more."""
        self._placed = deque(placed for placed in self._placed if placed.peer_id != peer_id)

    def unseen(self, view: View, now: float) -> dict[str, Load]:
        """Return by peer id what the announcements in the view do not show yet; forget the rest."""
        # A clock that was set back would otherwise keep what it has seen for as long as that.
        self._placed = deque(
            placed
            for placed in self._placed
            if abs(now - placed.at) < UNSEEN_S and not _is_seen(placed, view)
        )
        sessions: defaultdict[str, int] = defaultdict(int)
        kv_bytes: defaultdict[str, int] = defaultdict(int)
        for placed in self._placed:
            sessions[placed.peer_id] += placed.sessions
            kv_bytes[placed.peer_id] += placed.kv_bytes
        return {peer_id: Load(n, kv_bytes[peer_id]) for peer_id, n in sessions.items()}


def _kv_bytes(peer: Announcement, hop: Hop, positions: int) -> int:
    return positions * peer.kv_bytes_per_token * len(hop.blocks) // len(peer.span)


def _is_seen(placed: _Placed, view: View) -> bool:
    peer = view.peer(placed.peer_id)
    return peer is None or peer.issued_at > placed.at + SETTLE_S
