"""A sleep whose end can be put off, so that nobody wakes up only to find that it is too early."""

from __future__ import annotations

import asyncio
import time

_LEAST_SLEEP_S = 1e-3
"""uvloop counts whole milliseconds: with less the loop spins until it is time."""


class Alarm:
    """Wakes one task at a time. Times are those of `time.monotonic`, in seconds."""

    def __init__(self) -> None:
        self.at = 0.0
        """When the task that sleeps wakes up, or the last one should have."""
        self._rings = asyncio.Event()
        self._handle: asyncio.TimerHandle | None = None

    async def sleep_until(self, at: float) -> None:
        """Sleep until `at`, or until what it is put off to."""
        self._rings.clear()
        self._arm(at)
        try:
            await self._rings.wait()
        finally:
            self._disarm()

    def put_off(self, at: float, least: float) -> None:
        """Let the task that sleeps, if any, go on until `at`; moves of less are not worth it."""
        if self._handle is not None and at - self.at > least:
            self._disarm()
            self._arm(at)

    def _arm(self, at: float) -> None:
        self.at = at
        delay = max(_LEAST_SLEEP_S, at - time.monotonic())
        self._handle = asyncio.get_running_loop().call_later(delay, self._rings.set)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
