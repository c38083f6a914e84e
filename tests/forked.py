"""Starts daemons without the seconds that imports take, through a fork server; else as usual.

For tests whose subject is what daemons do together. What is to be seen of a process itself, its
start, its imports, its environment, is to be seen of one that is executed. With
TEST_DAEMONS=executed all are.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import fork_server
from fork_server import NUMBER

from swarmd.cli.local_swarm import Process, execute

FREE = ("PYTEST_", "SWARMD_", "PYTHONUNBUFFERED")
"""How names of variables begin that may differ: no library reads these when it is imported."""


class ForkedProcess:
    """What `subprocess.Popen` would be for a child of the fork server."""

    def __init__(self, pid: int, news: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._news = news
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if (code := self._look(left)) is not None:
                return code
            if left == 0.0:
                raise subprocess.TimeoutExpired("forked", timeout or 0.0)

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        """Return how it has ended, after so long at most."""
        # Nobody holds the lock while it waits. What has been read leaves an end to be seen.
        if self.returncode is None and select.select([self._news], [], [], timeout)[0]:
            with self._lock:
                if self.returncode is None:
                    news = self._news.recv(NUMBER.size)
                    # Without news the server has died, and its children with it.
                    self.returncode = NUMBER.unpack(news)[0] if news else -signal.SIGKILL
        return self.returncode

    def __del__(self) -> None:
        self._news.close()


class ForkServer:
    """The server as the tests hold it: started when it is first asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._known: tuple[str, dict[str, str]] = ("", {})

    def fork(
        self, module: str, args: Sequence[str], env: Mapping[str, str], output: BinaryIO
    ) -> ForkedProcess | None:
        """Start `python -m MODULE ARGS`; None where that cannot be had from this server."""
        with self._lock:
            if self._control is None and hasattr(os, "fork"):
                self._start()
        if self._control is None or self._known != (os.getcwd(), bound(env)):
            return None
        request = {"module": module, "args": list(args), "env": dict(env)}
        ours, theirs = socket.socketpair()
        with contextlib.suppress(OSError), theirs:
            files = (output.fileno(), theirs.fileno())
            socket.send_fds(self._control, [json.dumps(request).encode()], files)
        if pid := ours.recv(NUMBER.size):
            return ForkedProcess(NUMBER.unpack(pid)[0], ours)
        ours.close()
        return None

    def _start(self) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:  # a platform without such sockets
            return
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        command = (sys.executable, str(Path(fork_server.__file__)))
        with theirs:
            self.process = subprocess.Popen(
                command, stdin=theirs, stdout=subprocess.DEVNULL, env=env, start_new_session=True
            )
        self._control, self._known = ours, (os.getcwd(), bound(env))

    def stop(self) -> None:
        """End the server and all its children."""
        with self._lock:
            if self._control is not None and self.process is not None:
                self._control.close()
                self.process.wait()
            self._control = self.process = None


def bound(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that libraries may have read when the server imported them."""
    return {name: value for name, value in env.items() if not name.startswith(FREE)}


SERVER = ForkServer()


def forked(
    args: Sequence[str], env: Mapping[str, str], log: BinaryIO, prefix: Sequence[str] = ()
) -> Process:
    """A `launch` for `LocalSwarm` and `LocalNode`."""
    if prefix or os.environ.get("TEST_DAEMONS") == "executed":
        return execute(args, env, log, prefix)
    return SERVER.fork("swarmd.cli.main", args, env, log) or execute(args, env, log, prefix)
