"""Time as a value: the one seam through which swarmd's shells read clocks.

State machines never read a clock; they are handed `now`, in seconds of a monotonic clock.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time. `swarmd.testing.FakeClock` is the other implementation."""

    def monotonic(self) -> float:
        """Seconds since some fixed point, never going back."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch; may jump."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


def ahead(sent: float, theirs: float, received: float) -> float:
    """By how many seconds the own clock is ahead of another one, at least; negative: behind it.

    The other one showed `theirs` between two looks at the own one. 0 where they may be the same.
    """
    return max(0.0, sent - theirs) + min(0.0, received - theirs)


def earliest(*times: float | None) -> float | None:
    """Return the first of these times; None where there is none."""
    first = None
    for at in times:
        if at is not None and (first is None or at < first):
            first = at
    return first
