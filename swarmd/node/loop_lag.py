"""How late the event loop is: what a frame or a client's call waits before anybody looks at it.

Measured by a timer; what is made of it is `swarmd.node.metrics`'s and `swarmd.node.starvation`'s.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import deque

from swarmd.node.histogram import Histogram

INTERVAL_S = (0.1, 0.4)
"""Between two looks: drawn, as what keeps a process from running may come regularly. Each costs a
stream's caches: a tenth of a millisecond."""
SOON_S = (0.01, 0.04)
"""The same after a timer that came late, ..."""
LATE_S = 0.05
"""... which is by that much: whether it is more than one pause should be known soon."""
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
        self._wait(INTERVAL_S)

    @property
    def usual_s(self) -> float:
        """How late a timer comes, one pause aside; 0 until that is known."""
        return statistics.median(self._latest) if len(self._latest) == LATEST else 0.0

    def note(self, late: float) -> None:
        """A timer came that much late."""
        self.seconds.observe(max(0.0, late))
        self._latest.append(max(0.0, late))

    def _wait(self, limits: tuple[float, float]) -> None:
        # Not the loop's own clock, which may stand still while callbacks run.
        seconds = random.uniform(*limits)
        self._loop.call_later(seconds, self._awake, time.monotonic() + seconds)

    def _awake(self, due: float) -> None:
        late = time.monotonic() - due
        self.note(late)
        self._wait(SOON_S if late >= LATE_S else INTERVAL_S)
