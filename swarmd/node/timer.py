"""Wakes a state machine when its next deadline comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LEAST_S = 1e-3
"""uvloop counts whole milliseconds: with less the loop spins until it is time."""


class Deadline:
    """One pending call on the event loop, moved as the deadline moves. Times are the loop's.

    A deadline mostly moves later, with every token: the pending call stays where it is then, and
    looks at the deadline when its time has come.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._when: float | None = None
        self._handle: asyncio.Handle | None = None
        self._armed_for = 0.0
        """The handle does not say: uvloop gives one without a time where that is over by then."""

    def set(self, when: float | None) -> None:
        """Call back at `when` instead of whenever it was; None: not at all."""
        self._when = when
        if when is None:
            self._disarm()
        elif self._handle is None or when < self._armed_for:
            self._disarm()
            self._arm(when)

    def _arm(self, when: float) -> None:
        loop = asyncio.get_running_loop()
        self._armed_for = max(when, loop.time() + LEAST_S)
        self._handle = loop.call_at(self._armed_for, self._fire)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        assert self._when is not None
        if asyncio.get_running_loop().time() < self._when:
            self._arm(self._when)
        else:
            self._callback()
