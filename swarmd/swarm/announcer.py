"""When a node announces itself: at once on a change, else before its lease ends, and on leaving.

A decision and nothing else: the node's shell asks it with the time, and carries the announcement to
the directory.
"""

from __future__ import annotations

import math
from dataclasses import replace

from swarmd.core.peers import Announcement, NodeState

LEASE_S = 30.0
LOAD_INTERVAL_S = 0.75
"""Changes of load are announced this often at most."""
_LOAD_STEP = 0.2
_LATE_MS = 20.0


class Announcer:
    """Turns what a node is now into announcements, and most of the time into none.

    `now` is wall time in seconds. `jitter` in [0, 1) spreads the renewals of a swarm: the shell
    draws one per node.
    """

    def __init__(self, lease_s: float = LEASE_S, jitter: float = 0.0) -> None:
        self._lease_s = lease_s
        # A third of a lease leaves two more tries before the node would vanish.
        self._renew_s = lease_s / 3 * (1 - 0.2 * jitter)
        self._last: Announcement | None = None
        self._since = math.inf

    def due(self, current: Announcement, now: float) -> Announcement | None:
        """Return what to publish now, with `issued_at` and `expires_at` set; None if nothing."""
        last = self._last
        if last is not None and last.state is NodeState.GONE:
            return None
        if last is None or self._is_due(last, current, now):
            return self._stamped(current, now)
        return None

    def leave(self, now: float) -> Announcement | None:
        """Return the tombstone to publish; None if nothing was announced, or it is out already."""
        if self._last is None or self._last.state is NodeState.GONE:
            return None
        return self._stamped(replace(self._last, state=NodeState.GONE), now)

    def since(self, now: float) -> float:
        """Return when this process first announced the node, or now: no older one is its own."""
        return min(self._since, now)

    def next_at(self, now: float) -> float:
        """Return when to ask again although nothing changes."""
        if self._last is None:
            return now
        return min(self._last.issued_at + self._renew_s, now + self._renew_s)

    def _is_due(self, last: Announcement, current: Announcement, now: float) -> bool:
        age = now - last.issued_at
        # A clock that was set back would otherwise silence the node until it has caught up.
        if age >= self._renew_s or age < 0:
            return True
        if _standing(current) != _standing(last):
            return True
        return age >= LOAD_INTERVAL_S and _load_differs(last, current)

    def _stamped(self, current: Announcement, now: float) -> Announcement:
        """Stamp it later than the one before: only then does it replace that one."""
        issued_at, expires_at = now, now + self._lease_s
        if self._last is not None and self._last.issued_at - now < self._lease_s:
            issued_at = max(issued_at, self._last.issued_at + 1e-3)
            expires_at = max(expires_at, self._last.expires_at + 1e-3)
        self._since = min(self._since, issued_at)  # a clock may have been set back
        self._last = replace(
            current, issued_at=issued_at, expires_at=expires_at, public_key=b"", signature=b""
        )
        return self._last


def _standing(a: Announcement) -> tuple[object, ...]:
    """What others must hear of at once."""
    where = (a.span, a.state, a.plan, a.moves, a.leaves, a.starves)
    return (a.peer_id, a.address, a.model, where, a.dtype, a.device, a.ragged, a.pid)


def _load_differs(last: Announcement, current: Announcement) -> bool:
    """Whether free KV or sessions changed by a fifth, or an idle node became busy or idle again.

    Or whether it came to be short of its machine's time, or got over that.
    """
    kv = abs(last.kv_free_bytes - current.kv_free_bytes) > _LOAD_STEP * last.kv_total_bytes
    busier = abs(last.sessions - current.sessions) > _LOAD_STEP * max(last.sessions, 1)
    queue = abs(last.queue_depth - current.queue_depth) > max(2, last.queue_depth)
    late = abs(last.lag_ms - current.lag_ms) > max(_LATE_MS, last.lag_ms / 2)
    return kv or busier or queue or late or (last.step_ms == 0) != (current.step_ms == 0)
