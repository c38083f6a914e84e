"""Whether the sessions of a node stand still, so that nothing is gained by waiting for them.

Sessions that run are handed off while they do; those that lack a hop elsewhere stand still until
somebody fills the gap, and the node that is about to must not wait for them.
"""

from __future__ import annotations


class Standstill:
    """Watches a count of steps. `now` is seconds of a monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._steps = -1
        self._since = 0.0

    def has_come(self, steps: int, now: float) -> bool:
        """Whether the count has been the same for so long."""
        if steps != self._steps:
            self._steps, self._since = steps, now
        return now - self._since >= self._seconds
