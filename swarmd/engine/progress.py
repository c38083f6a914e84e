"""How long work tells how far it is; drawing a bar is the command line's business."""

from __future__ import annotations

import threading
from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what is being done); from any thread, never concurrently.
An exception out of it ends the work."""


class Meter:
    """Adds up what several threads have done, and tells it in steps worth drawing."""

    def __init__(self, progress: Progress | None, total: int, what: str) -> None:
        self.total = total
        self._progress = progress
        self._what = what
        self._step = min(total // 500, 1 << 20)
        self._done = 0
        self._told = 0
        self._guard = threading.Lock()

    def advance(self, nbytes: int) -> None:
        """`nbytes` more are done; 0 tells again how far it is.

        Slack between ranges may exceed the total: it is not shown.
        """
        with self._guard:
            self._done = min(self._done + nbytes, self.total)
            due = self._done >= min(self._told + self._step, self.total) or nbytes == 0
            if due and self._progress is not None:
                self._told = self._done
                self._progress(self._done, self.total, self._what)
