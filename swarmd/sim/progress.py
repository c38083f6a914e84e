"""How far a run of many seeds has come, now and then: it may take hours."""

from __future__ import annotations

EVERY_SEEDS = 500
EVERY_S = 60.0


class Progress:
    """Counts seeds. Times are seconds of a monotonic clock."""

    def __init__(self, seeds: int, now: float) -> None:
        """`seeds` is how many are to be run."""
        self.began = now
        self.failed = 0
        self._seeds = seeds
        self._done = 0
        self._said_at = now

    def one_more(self, now: float, *, failed: bool) -> str:
        """Note the end of a seed; return a line if it is time for one, else nothing."""
        self._done += 1
        self.failed += failed
        if self._done % EVERY_SEEDS and now - self._said_at < EVERY_S:
            return ""
        self._said_at = now
        rate = self._done / max(now - self.began, 1e-3)
        return f"{self._done} of {self._seeds} seeds, {self.failed} failed, {rate:.1f} a second"
