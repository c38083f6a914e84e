"""How far loading has come: a bar on a terminal, a log line per tenth elsewhere.

Called by `swarmd.node` from the thread that loads; what is loaded it does not know.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("swarmd.serve")


class LoadProgress:
    """Takes `(bytes done, bytes in all, what is being done)`; not from two threads at once."""

    def __init__(self) -> None:
        self._what = ""
        self._tenth = -1
        self._bar: Progress | None = None
        self._task: Any = None

    def __call__(self, done: int, total: int, what: str) -> None:
        if what != self._what:
            self._what, self._tenth = what, -1
            self.close()
        if sys.stderr.isatty():
            self._draw(done, total)
        else:
            self._log(done, total)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=total)
        self._bar.update(self._task, completed=done, total=total)

    def _log(self, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if tenth > self._tenth:
            self._tenth = tenth
            log.info("loading what=%r percent=%d bytes=%d", self._what, 10 * tenth, total)


def _new_bar() -> Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
