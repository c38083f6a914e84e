"""How long work tells how far it is; drawing a bar is the command line's business."""

from __future__ import annotations

import threading

from swarmd.engine.source import Progress


class Meter:
    """Adds up what several threads have done."""

    def __init__(self, progress: Progress | None, total: int, what: str) -> None:
        self.total = total
        self._progress = progress
        self._what = what
        self._done = 0
        self._guard = threading.Lock()

    def advance(self, nbytes: int) -> None:
        """`nbytes` more are done. Slack between ranges may exceed the total: it is not shown."""
        with self._guard:
            self._done += nbytes
            if self._progress is not None:
                self._progress(min(self._done, self.total), self.total, self._what)
