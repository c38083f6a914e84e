"""How late the event loop is: what a frame or a client's call waits before anybody looks at it.

Measured by a timer, every other second as long as nothing is late: a process that wakes finds
nothing in the caches, so that costs a tenth to a fifth of a millisecond whatever is done then. So
those who have something to do about as often do it in the same wake. What is made of the figures is
`swarmd.node.metrics`'s and `swarmd.node.starvation`'s.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from bisect import bisect
from collections import deque
from collections.abc import Callable
from itertools import accumulate

from swarmd.node.histogram import Histogram

INTERVAL_S = (1.5, 2.5)
"""Between two looks: drawn, as what keeps a process from running may come regularly."""
SOON_S = (0.01, 0.04)
"""The same for looks beside these, while timers come late, ..."""
LATE_S = 0.05
"""... by that much: that it is more than one pause, or over, should be known soon."""
TELL_S = 0.25
"""Who waits for looks is told that often at most."""
LATEST = 9
"""Of so many the median counts, each for the time that it took, ..."""
MOST_S = 0.4
"""... but for so long at most, as one long pause is not many, ..."""
PUNCTUAL_S = 0.25
"""... and where nobody looked in between, for so long and what it was late."""


class LoopLag:
    """Looks how late a timer comes, twice in four seconds or more often, while the loop runs."""

    def __init__(self) -> None:
        self.seconds = Histogram(
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
        )
        self._latest: deque[tuple[float, float]] = deque(maxlen=LATEST)
        """How late, and how long that took in all."""
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []
        self._told_at = -math.inf
        self._soon = False
        """Whether a look is under way beside the one that always is."""
        self._wait(INTERVAL_S, self._look)

    @property
    def usual_s(self) -> float:
        """How late a timer comes half of the time; 0 until that is known."""
        if len(self._latest) < LATEST:
            return 0.0
        ranked = sorted(self._latest)
        passed = list(accumulate(seconds for _, seconds in ranked))
        return ranked[bisect(passed, passed[-1] / 2)][0]

    def note(self, late: float, seconds: float = MOST_S) -> None:
        """A timer of so many seconds came that much late."""
        self._latest.append((late, min(MOST_S, min(PUNCTUAL_S, seconds) + late)))

    def noticed(self, late: float) -> None:
        """Something else has waited so long for the loop, which is known of late ones only."""
        self.note(late, 0.0)
        self._look_soon(late)

    async def looked(self) -> None:
        """Wait for the next look, or for the first one after `TELL_S` since the last was told."""
        self._waiting.append(waiter := self._loop.create_future())
        await waiter

    def _wait(self, between: tuple[float, float], look: Callable[[float, float], None]) -> None:
        # Not the loop's own clock, which may stand still while callbacks run.
        seconds = random.uniform(*between)
        self._loop.call_later(seconds, look, time.monotonic(), seconds)

    def _look(self, since: float, seconds: float) -> None:
        late = self._measure(since, seconds)
        self.seconds.observe(late)
        self._wait(INTERVAL_S, self._look)
        self._look_soon(late)

    def _look_soon(self, late: float) -> None:
        if not self._soon and max(late, self.usual_s) >= LATE_S:
            self._soon = True
            self._wait(SOON_S, self._look_again)

    def _look_again(self, since: float, seconds: float) -> None:
        self._soon = False
        self._look_soon(self._measure(since, seconds))

    def _measure(self, since: float, seconds: float) -> float:
        """Note how late a timer of so many seconds came, and tell those who wait."""
        now = time.monotonic()
        late = max(0.0, now - since - seconds)
        self.note(late, seconds)
        if now - self._told_at >= TELL_S:
            self._told_at = now
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)
        return late
