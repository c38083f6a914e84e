"""What is on its way to peers and not there yet, by session: sums that are kept up as they change.

What is sent because of them is `copies.Copies`' decision.
"""

from __future__ import annotations


class UnderWay:
    """Bytes for each peer, and for each session of those."""

    def __init__(self) -> None:
        self._of: dict[str, dict[bytes, int]] = {}
        self._sums: dict[str, int] = {}

    def note(self, peer_id: str, session: bytes, nbytes: int) -> None:
        """Say how much is on its way for a session; 0 when all is there, or given up."""
        of = self._of.setdefault(peer_id, {})
        total = self._sums.get(peer_id, 0) + nbytes - of.pop(session, 0)
        if nbytes:
            of[session] = nbytes
        if of:
            self._sums[peer_id] = total
        else:
            del self._of[peer_id]
            self._sums.pop(peer_id, None)

    def of(self, peer_id: str, session: bytes) -> int:
        """What is on its way to a peer for one session."""
        return self._of.get(peer_id, {}).get(session, 0)

    def total(self, peer_id: str) -> int:
        """What is on its way to a peer for all of them."""
        return self._sums.get(peer_id, 0)

    def sharers(self, peer_id: str, session: bytes) -> int:
        """For how many sessions something is on its way to a peer, or soon will be for this one."""
        of = self._of.get(peer_id, {})
        return len(of) + (session not in of)

    def __bool__(self) -> bool:
        return bool(self._of)
