"""A command that has started processes ends in order when it is told to by a signal.

SIGTERM and SIGHUP end a process on the spot by default, and what it has started goes on. Here they
raise `Terminated` instead, so that whatever is cleaned up after an interrupt is cleaned up.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_ONE_WISH_S = 1.0
"""A terminal that closes sends several signals: those after the first must not break into what that
one has begun. Later ones count again, in case nobody saw the first."""


class Terminated(KeyboardInterrupt, SystemExit):
    """A signal told the command to end.

    Whoever handles interrupts, as pytest does, takes it for one. Where nobody does, the interpreter
    exits with its code, and without a trace.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code: int = 128 + number


class _Endings:
    """The handlers of the process; only the main thread may set them, and only it hears them."""

    def __init__(self) -> None:
        self._wanted = 0
        self._holds = 0
        self._held: int | None = None
        self._told_at = float("-inf")
        self._ours: list[signal.Signals] = []

    def begin(self) -> None:
        """From now on signals raise; those that are ignored, as under nohup, stay so."""
        self._wanted += 1
        if self._ours or not _in_main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._on_signal)
                self._ours.append(number)

    def end(self) -> None:
        """Undo `begin`; the last time, signals do again what they did before."""
        self._wanted -= 1
        if self._wanted or not _in_main_thread():
            return
        for number in self._ours:
            signal.signal(number, signal.SIG_DFL)
        self._ours = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let what is done here be finished first: a signal raises afterwards."""
        if not _in_main_thread():
            yield
            return
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            number = self._held
            if number is not None and not self._holds:
                self._held = None
                raise Terminated(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._told_at < _ONE_WISH_S:
            return
        self._told_at = now
        if self._holds:
            self._held = number
        else:
            raise Terminated(number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_ENDINGS = _Endings()
begin, end, held = _ENDINGS.begin, _ENDINGS.end, _ENDINGS.held


@contextmanager
def in_order() -> Iterator[None]:
    """Signals raise `Terminated` in here."""
    begin()
    try:
        yield
    finally:
        end()
