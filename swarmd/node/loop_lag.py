"""How late the event loop is: what a frame or a client's call waits before anybody looks at it.

Measured by a timer; what is made of it is `swarmd.node.metrics`'s.
"""

from __future__ import annotations

import asyncio
import time

from swarmd.node.histogram import Histogram

INTERVAL_S = 0.2


class LoopLag:
    """Looks how late a timer comes, five times a second, as long as the running loop runs."""

    def __init__(self) -> None:
        self.seconds = Histogram(
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
        )
        self._loop = asyncio.get_running_loop()
        self._wait()

    def _wait(self) -> None:
        # Not the loop's own clock, which may stand still while callbacks run.
        due = time.monotonic() + INTERVAL_S
        self._loop.call_later(INTERVAL_S, self._awake, due)

    def _awake(self, due: float) -> None:
        self.seconds.observe(max(0.0, time.monotonic() - due))
        self._wait()
