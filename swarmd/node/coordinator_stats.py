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
    precision_changes: int = 0
    """Repairs that found no peer of the same precision for some blocks."""
    resumed: int = 0

    def note(self, driver: Driver) -> None:
        """Add what a session has come to that is over."""
        self.attempts += driver.attempts
        self.precision_changes += driver.precision_changes
        self.handoffs += driver.handoffs
        self.repairs += driver.repairs
        self.repairs_lost += driver.causes[Cause.LOST]
        self.repairs_slow += driver.causes[Cause.SLOW]
        self.repairs_stalled += driver.causes[Cause.STALLED]
        self.repairs_capacity += driver.causes[Cause.CAPACITY]
        self.repairs_failed += driver.causes[Cause.FAILED]
