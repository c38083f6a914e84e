"""What a node has coordinated: plain numbers, for status and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.pipeline.causes import Cause
from swarmd.pipeline.driver import Driver


@dataclass(slots=True)
class CoordinatorStats:
    """What this node has coordinated since it started."""

    sessions_started: int = 0
    sessions_finished: int = 0
    sessions_failed: int = 0
    tokens_emitted: int = 0
    repairs: int = 0
    """Counted as they begin, as all that follows."""
    repairs_lost: int = 0
    repairs_slow: int = 0
    repairs_stalled: int = 0
    repairs_capacity: int = 0
    repairs_failed: int = 0
    handoffs: int = 0
    """Hops that have left, with their KV at their successors."""
    moved: int = 0
    """Sessions that were left to other coordinators, as this node leaves."""
    attempts: int = 0
    """Times that sessions were opened on hops."""
    recomputed_positions: int = 0
    """Positions that any hop was to compute once more."""
    precision_changes: int = 0
    """Repairs and handoffs that found no peer of the same precision for some blocks."""
    standbys_given_up: int = 0
    """Copies that lagged too far behind."""
    resumed: int = 0

    def note(self, driver: Driver, before: Noted) -> Noted:
        """Add what has happened to a session that runs; return what is counted of it by now.

        `before` is what this returned the last time, () at first.
        """
        now: Noted = (
            driver.attempts,
            driver.handoffs,
            driver.precision_changes,
            driver.feed.recomputed,
            driver.repairs,
            driver.standbys.given_up,
        )
        if now == before[: len(now)]:
            return before  # as after nearly every token
        now += tuple(driver.causes[cause] for cause in Cause)
        for name, value, old in zip(_NOTED, now, before or (0,) * len(now), strict=True):
            setattr(self, name, getattr(self, name) + value - old)
        return now


Noted = tuple[int, ...]
"""What has been counted of a session, in the order of _NOTED."""
_NOTED = (
    "attempts",
    "handoffs",
    "precision_changes",
    "recomputed_positions",
    "repairs",
    "standbys_given_up",
    *(f"repairs_{cause}" for cause in Cause),
)
