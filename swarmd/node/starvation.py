"""Whether this process gets too little of its machine to drive sessions while others get on.

What becomes of its sessions then is for `coordinator.Coordinator.ease` to say.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence

from swarmd.core.clock import Clock
from swarmd.node.membership import Membership

BEAT_S = (0.1, 0.4)
"""Between two looks how late a timer comes: drawn, as what starves a process may come regularly.
Each costs a stream's caches: a tenth of a millisecond."""
BEATS = 9
"""Of so many the median counts."""
LOOK_S = 1.0
LEAST_S = 0.05
"""Starved is whose timers come so late ..."""
TIMES = 4.0
"""... and so many times as late as those of other nodes, half of which are later than ..."""
USUAL_S = 0.005
"""... at least this, ..."""
SHARE = 0.5
"""... while it uses less than this of one core: one that is merely busy gets what it wants ..."""
FOR_S = 3.0
"""... for so long."""


class Starvation:
    """Watches how late this process is. Times are in seconds of one monotonic clock."""

    def __init__(self, cpu_s: float, now: float) -> None:
        self._late: deque[float] = deque(maxlen=BEATS)
        self._since: float | None = None
        self._looked_at, self._cpu_s = now, cpu_s

    def beat(self, late: float) -> None:
        """A timer came that much late."""
        self._late.append(max(0.0, late))

    @property
    def lag_s(self) -> float:
        """How late a timer comes here; 0 until that is known."""
        return statistics.median(self._late) if len(self._late) == BEATS else 0.0

    def look(self, cpu_s: float, others: Sequence[float], now: float) -> bool:
        """Return whether it has starved for a while.

        `cpu_s` is the CPU time of this process until now; `others` is how late timers come at
        other nodes, by what they say.
        """
        share = (cpu_s - self._cpu_s) / max(1e-3, now - self._looked_at)
        self._looked_at, self._cpu_s = now, cpu_s
        if share >= SHARE or not self.falls_behind(others):
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= FOR_S

    def falls_behind(self, others: Sequence[float]) -> bool:
        """Whether others would be quicker; never where all are equally late, or nobody is there."""
        if not others or self.lag_s < LEAST_S:
            return False
        return self.lag_s >= TIMES * max(USUAL_S, statistics.median(others))


async def keep_watch(membership: Membership, ease: Callable[[], None], clock: Clock) -> None:
    """Announce how late this node is; while it starves and others do not, have it eased."""
    starvation = Starvation(time.process_time(), clock.monotonic())
    looked_at = clock.monotonic()
    while True:
        seconds = random.uniform(*BEAT_S)
        due = clock.monotonic() + seconds
        await asyncio.sleep(seconds)
        now = clock.monotonic()
        starvation.beat(now - due)
        if membership.description is not None:
            membership.description.lag_s = starvation.lag_s
        if now - looked_at < LOOK_S:
            continue
        looked_at = now
        if starvation.look(time.process_time(), _others(membership), now):
            await membership.presence.look_again()
            if starvation.falls_behind(_others(membership)):
                ease()


def _others(membership: Membership) -> list[float]:
    """How late those are that could drive sessions instead, by what they say.

    On a machine that is overloaded, processes with nothing to do are punctual all the same: those
    that work say more, where there are any.
    """
    presence = membership.presence
    own = presence.own
    peers = presence.view.serving(own.model.digest) if own else ()
    others = [peer for peer in peers if peer.peer_id != presence.own_id]
    at_work = [peer for peer in others if peer.sessions]
    return [peer.lag_ms / 1000 for peer in at_work or others]
