"""Wakes a state machine when its next deadline comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """One pending call on the event loop, moved as the deadline moves. Times are the loop's."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def set(self, when: float | None) -> None:
        """Call back at `when` instead of whenever it was; None: not at all."""
        if self._handle is not None:
            if when is not None and self._handle.when() == when and not self._handle.cancelled():
                return
            self._handle.cancel()
            self._handle = None
        if when is not None:
            self._handle = asyncio.get_running_loop().call_at(when, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._callback()
