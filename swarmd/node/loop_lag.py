"""How late the event loop is: what a frame or a client's call waits before anybody looks at it.

Measured by a timer; what is made of it is `swarmd.node.metrics`'s and `swarmd.node.starvation`'s.
"""

from __future__ import annotations

import asyncio
import functools
import random
import statistics
import time
from collections import deque

from swarmd.node.histogram import Histogram

INTERVAL_S = (0.1, 0.4)
"""Between two looks: drawn, as what keeps a process from running may come regularly. Each costs a
stream's caches: a tenth of a millisecond."""
SOON_S = (0.01, 0.04)
"""The same while timers come late, ..."""
LATE_S = 0.05
"""... by that much: that it is more than one pause, or over, should be known soon."""
LATEST = 9
"""Of so many the median counts."""


class LoopLag:
    """Looks how late a timer comes, about four times a second, as long as the running loop runs."""

    def __init__(self) -> None:
        self.seconds = Histogram(
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
        )
        self._latest: deque[float] = deque(maxlen=LATEST)
        self._loop = asyncio.get_running_loop()
        self._wait(often=False)

    @property
    def usual_s(self) -> float:
        """How late a timer comes, one pause aside; 0 until that is known."""
        return statistics.median(self._latest) if len(self._latest) == LATEST else 0.0

    def note(self, late: float) -> None:
        """A timer came that much late."""
        self._latest.append(late)

    def _wait(self, *, often: bool) -> None:
        # Not the loop's own clock, which may stand still while callbacks run.
        seconds = random.uniform(*(SOON_S if often else INTERVAL_S))
        due = time.monotonic() + seconds
        self._loop.call_later(seconds, functools.partial(self._awake, due, often=often))

    def _awake(self, due: float, *, often: bool) -> None:
        late = max(0.0, time.monotonic() - due)
        self.note(late)
        if not often:  # or late times would count for more than they last
            self.seconds.observe(late)
        self._wait(often=max(late, self.usual_s) >= LATE_S)
