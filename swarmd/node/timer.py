"""Wakes a state machine when its next deadline comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LEAST_S = 1e-3
"""uvloop counts whole milliseconds: with less the loop spins until it is time."""


class Deadline:
    """One pending call on the event loop, moved as the deadline moves. Times are the loop's.

    A deadline mostly moves later, with every token: the pending call stays where it is then, as
    long as it is more than half as far away. Where it comes all the same, it looks at the deadline.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._when: float | None = None
        self._handle: asyncio.Handle | None = None
        self._armed_for = 0.0
        """The handle does not say: uvloop gives one without a time where that is over by then."""
        self.is_set = False
        """Whether it will be called back."""

    def set(self, when: float | None) -> None:
        """Call back at `when` instead of whenever it was; None: not at all."""
        self._when = when
        if when is None:
            self._disarm()
            return
        now = asyncio.get_running_loop().time()
        # A call in vain wakes the process, which costs more than many that are put off.
        in_vain = when > now and self._armed_for < now + (when - now) / 2
        if self._handle is None or in_vain or self._armed_for > max(when, now + LEAST_S):
            self._disarm()
            self._arm(when, now)

    def _arm(self, when: float, now: float) -> None:
        loop = asyncio.get_running_loop()
        self._armed_for = max(when, now + LEAST_S)
        self._handle, self.is_set = loop.call_at(self._armed_for, self._fire), True

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle, self.is_set = None, False

    def _fire(self) -> None:
        self._handle, self.is_set = None, False
        assert self._when is not None
        now = asyncio.get_running_loop().time()
        if now < self._when:
            self._arm(self._when, now)
        else:
            self._callback()
