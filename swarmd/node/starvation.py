"""Whether this process gets too little of its machine to drive sessions while others get on.

What becomes of its sessions then is for `coordinator.Coordinator.ease` to say.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Collection, Sequence
from typing import Protocol

from swarmd.core.peers import Announcement
from swarmd.node.loop_lag import LoopLag
from swarmd.node.membership import Membership

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two times at which sessions are eased."""
LEAST_S = 0.05
"""Starved is whose timers come so late ..."""
TIMES = 4.0
"""... and so many times as late as those of other nodes, half of which are later than ..."""
USUAL_S = 0.005
"""... at least this, ..."""
SHARE = 0.5
"""... while it uses less than this of one core: one that is merely busy gets what it wants ..."""
FOR_S = 1.5
"""... for so long."""
OVER_S = 10.0
"""For so long it counts as starved after that, so that sessions do not come and go."""


class Starvation:
    """Watches how late this process is. Times are in seconds of one monotonic clock."""

    def __init__(self, cpu_s: float, now: float) -> None:
        self._since: float | None = None
        self._looked_at, self._cpu_s = now, cpu_s

    def look(self, lag_s: float, others: Sequence[float], cpu_s: float, now: float) -> bool:
        """Return whether it has starved for a while.

        `lag_s` is how late timers come here, `others` how late they come at other nodes, by what
        these say; `cpu_s` is the CPU time of this process until now.
        """
        share = (cpu_s - self._cpu_s) / max(1e-3, now - self._looked_at)
        self._looked_at, self._cpu_s = now, cpu_s
        if share >= SHARE or not falls_behind(lag_s, others):
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= FOR_S


def falls_behind(lag_s: float, others: Sequence[float]) -> bool:
    """Whether others would be quicker; never where all are equally late, or nobody is there."""
    if not others or lag_s < LEAST_S:
        return False
    return lag_s >= TIMES * max(USUAL_S, statistics.median(others))


class Sessions(Protocol):
    """Those that this node coordinates."""

    def ease(self) -> None:
        """Let other nodes go on with some of them."""
        ...

    def go_round(self, peers: Collection[str]) -> None:
        """Have some of them leave these hops, where others can take their places."""
        ...


async def keep_watch(membership: Membership, sessions: Sessions, lag: LoopLag) -> None:
    """Announce how late this node is, and whether it starves; ease who it holds up then.

    Its own sessions go round others that say so.
    """
    starvation = Starvation(time.process_time(), time.monotonic())
    until = eased = -math.inf
    before: object = None
    news = False
    while True:
        await lag.looked()
        if (about := membership.description) is None:
            continue
        about.lag_s = late = lag.usual_s
        cpu_s, now = time.process_time(), time.monotonic()
        starves = starvation.look(late, _others(membership) if late >= LEAST_S else (), cpu_s, now)
        if starves and now >= eased + LOOK_S:
            eased = now
            await membership.presence.look_again()
            if falls_behind(lag.usual_s, _others(membership)):
                until = time.monotonic() + OVER_S
                sessions.ease()
        if about.starves != (starves := time.monotonic() < until):
            about.starves = starves
            what = "this node gets too little time" if starves else "it gets its time again"
            log.warning("%s: timers come late ms=%.0f", what, 1000 * late)
        # Looked at twice: what is new so soon after an announcement is not announced at once.
        was_news, news = news, before != (before := about.load())
        if news or was_news:
            membership.presence.changed()
        go_round(membership, sessions)


def go_round(membership: Membership, sessions: Sessions) -> None:
    """Have sessions leave other nodes that say that they starve."""
    if hops := [peer.peer_id for peer in _peers(membership) if peer.starves]:
        sessions.go_round(hops)


def _others(membership: Membership) -> list[float]:
    """How late those are that could drive sessions instead, by what they say.

    On a machine that is overloaded, processes with nothing to do are punctual all the same: those
    that work say more. But one that says so alone is not believed against all others.
    """
    peers = _peers(membership)
    every = [peer.lag_ms / 1000 for peer in peers]
    at_work = [peer.lag_ms / 1000 for peer in peers if peer.sessions]
    return max((every, at_work or every), key=statistics.median) if every else []


def _peers(membership: Membership) -> list[Announcement]:
    presence, about = membership.presence, membership.description
    peers = presence.view.serving(about.model.digest) if about else ()
    return [peer for peer in peers if peer.peer_id != presence.own_id]
