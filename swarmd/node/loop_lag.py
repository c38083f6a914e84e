"""How late the event loop is: what a frame or a client's call waits before anybody looks at it.

Measured by a timer; what is made of it is `swarmd.node.metrics`'s and `swarmd.node.starvation`'s.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from bisect import bisect
from collections import deque
from itertools import accumulate

from swarmd.node.histogram import Histogram

INTERVAL_S = (0.1, 0.4)
"""Between two looks: drawn, as what keeps a process from running may come regularly. Each costs a
stream's caches: a tenth of a millisecond."""
SOON_S = (0.01, 0.04)
"""The same while timers come late, ..."""
LATE_S = 0.05
"""... by that much: that it is more than one pause, or over, should be known soon."""
LATEST = 9
"""Of so many the median counts, each for the time that it took, ..."""
MOST_S = 0.4
"""... but for so long at most: one long pause is not many."""


class LoopLag:
    """Looks how late a timer comes, about four times a second, as long as the running loop runs."""

    def __init__(self) -> None:
        self.seconds = Histogram(
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
        )
        self._latest: deque[tuple[float, float]] = deque(maxlen=LATEST)
        """How late, and how long that took in all."""
        self._loop = asyncio.get_running_loop()
        self._wait(often=False)

    @property
    def usual_s(self) -> float:
        """How late a timer comes half of the time; 0 until that is known."""
        if len(self._latest) < LATEST:
            return 0.0
        ranked = sorted(self._latest)
        passed = list(accumulate(seconds for _, seconds in ranked))
        return ranked[bisect(passed, passed[-1] / 2)][0]

    def note(self, late: float, seconds: float = INTERVAL_S[1]) -> None:
        """A timer of so many seconds came that much late."""
        self._latest.append((late, min(MOST_S, seconds + late)))

    def _wait(self, *, often: bool) -> None:
        # Not the loop's own clock, which may stand still while callbacks run.
        seconds, now = random.uniform(*(SOON_S if often else INTERVAL_S)), time.monotonic()
        self._loop.call_later(seconds, functools.partial(self._awake, now, seconds, often=often))

    def _awake(self, since: float, seconds: float, *, often: bool) -> None:
        late = max(0.0, time.monotonic() - since - seconds)
        self.note(late, seconds)
        if not often:  # or late times would count for more than they last
            self.seconds.observe(late)
        self._wait(often=max(late, self.usual_s) >= LATE_S)
