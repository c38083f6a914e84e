"""When a link owes its peer a heartbeat: a decision over the times that it is told."""

from __future__ import annotations

BEATS_LEFT_OUT = 9
"""Heartbeats in a row that other frames may stand for: they also measure the round trip. One that
is sent wakes both sides twice."""


class Pulse:
    """Times are in seconds of one monotonic clock. The peer never waits longer than `every`."""

    def __init__(self, every: float, now: float) -> None:
        self.due_at = now
        """When to ask `take` again."""
        self._every = every
        self.spares = False
        """Whether frames may stand for heartbeats: once a round trip has been measured."""
        self._spared_until = now

    def wrote(self, now: float) -> None:
        """A frame has been written, which says as well as a heartbeat that this side lives."""
        if self.spares:
            self.due_at = min(self._spared_until, now + self._every)

    def take(self, now: float) -> bool:
        """Whether to send a heartbeat now."""
        if now < self.due_at:
            return False
        self._spared_until = now + (1 + BEATS_LEFT_OUT) * self._every
        self.due_at = now + self._every
        return True
