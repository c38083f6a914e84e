"""One child process that renders chat templates, seen from outside: asked, timed, killed.

What runs inside is `swarmd.text.chat_child`; when a process is replaced is `swarmd.text.chat`'s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from swarmd.core.errors import CapacityError
from swarmd.text import chat_child

_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")


@dataclass(frozen=True, slots=True)
class ChatLimits:
    """What one rendering may take."""

    deadline_s: float = 5.0
    """Seconds of wall clock, the start of the child included."""
    wait_s: float = 20.0
    """Seconds to wait for renderings that came before."""
    memory_bytes: int = 512 << 20
    """Address space of the child, Python's own (about 40 MiB) included."""
    input_bytes: int = 8 << 20
    """Messages, tools and variables as JSON, without the template."""
    output_bytes: int = 8 << 20
    """The rendered text as UTF-8."""


class ChatProcess:
    """A running `chat_child`, for one caller at a time; useless once it has expired or died.

    Raises CapacityError when the machine cannot start it.
    """

    def __init__(self, limits: ChatLimits) -> None:
        self._deadline_s = limits.deadline_s
        self._mutex = threading.Lock()
        self._asking: object | None = None
        self.expired = False
        """Whether it was killed because a request took too long."""
        self._process = _start()
        self._greeting = json.dumps(
            {
                "memory_bytes": limits.memory_bytes,
                "cpu_s": max(1, round(limits.deadline_s)),
                "output_bytes": limits.output_bytes,
            }
        ).encode()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def ask(self, request: bytes) -> dict[str, Any] | None:
        """Send a request, JSON; return the answer, or None when the process died over it."""
        ticket = object()
        with self._mutex:
            self._asking = ticket
        timer = threading.Timer(self._deadline_s, self._expire, [ticket])
        timer.daemon = True
        timer.start()
        try:
            return self._exchange(request)
        finally:
            timer.cancel()
            with self._mutex:
                self._asking = None

    def kill(self) -> None:
        """End the process and free its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not yet written goes nowhere
                    pipe.close()

    def _exchange(self, request: bytes) -> dict[str, Any] | None:
        sink, source = self._process.stdin, self._process.stdout
        if sink is None or source is None:
            return None
        try:
            if self._greeting:
                chat_child.write_frame(sink, self._greeting)
                self._greeting = b""
            chat_child.write_frame(sink, request)
            answer = chat_child.read_frame(source)
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def _expire(self, ticket: object) -> None:
        # Under the mutex, so that an answer that comes at the last moment is not followed by a
        # kill, and a late timer does not hit the next request.
        with self._mutex:
            if self._asking is ticket:
                self.expired = True
                self._process.kill()


def _start() -> subprocess.Popen[bytes]:
    # By its path and not by -m: importing swarmd would bring more into the child. -P keeps the
    # working directory, perhaps the model's, out of the import path.
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-B", chat_child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/" if os.name == "posix" else None,
            start_new_session=True,  # a Ctrl-C at the terminal is the daemon's to handle
        )
    except OSError as error:
        raise CapacityError(f"the chat template's process cannot be started: {error}") from error


def _environment() -> dict[str, str]:
    """The little that Python needs: above all no tokens and keys of the daemon's."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
