"""Whether this machine has just run out of memory: for a while nobody new is taken.

A budget in bytes is a promise about memory; that it does not hold is noticed when a step fails for
want of it. Who is given up then is `hop.HopTable`'s decision.
"""

from __future__ import annotations


class Shortage:
    """Begins when memory runs out, and ends by itself after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.until: float | None = None
        """When it is over; None: there is none."""

    def __bool__(self) -> bool:
        return self.until is not None

    def begin(self, now: float) -> None:
        """Memory has run out, perhaps once more."""
        self.until = now + self.seconds

    def tick(self, now: float) -> None:
        """End it if it is over."""
        if self.until is not None and self.until <= now:
            self.until = None

    def before(self, due: float | None) -> float | None:
        """When the next tick matters: at the end of it, or at `due`."""
        if self.until is None:
            return due
        return self.until if due is None else min(due, self.until)
