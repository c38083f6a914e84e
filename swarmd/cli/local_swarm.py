"""A swarm of real daemons on this machine: started together, killed singly, cleaned up at the end.

What the demo, the benchmarks and the end-to-end tests stand on. Each node is a `swarmd serve`
process with its own state directory and log file.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from swarmd.cli import endings
from swarmd.core.errors import SwarmdError

_READY = re.compile(r"^serving .* at (\S+)", re.MULTILINE)
_LOG_TAIL = 2000
_PORTS = (20000, 32768)
"""Below those that systems give to whoever asks for any: from 32768 on Linux, 49152 elsewhere."""


class Process(Protocol):
    """What is asked of a process that has been started: a part of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


class Launch(Protocol):
    """Starts `python -m swarmd.cli.main` with arguments; what it prints goes to the log."""

    def __call__(
        self, args: Sequence[str], env: Mapping[str, str], log: BinaryIO, prefix: Sequence[str]
    ) -> Process: ...


def execute(
    args: Sequence[str], env: Mapping[str, str], log: BinaryIO, prefix: Sequence[str]
) -> Process:
    """Execute an interpreter. `prefix` is a command that becomes it, as `ip netns exec NAME`."""
    return subprocess.Popen(
        (*prefix, sys.executable, "-m", "swarmd.cli.main", *args),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
    )


class LocalNode:
    """One `swarmd serve` process."""

    def __init__(
        self,
        args: Sequence[str],
        directory: Path,
        env: Mapping[str, str],
        prefix: Sequence[str] = (),
        launch: Launch = execute,
    ) -> None:
        """`prefix` as for `execute`."""
        self.directory = directory
        self.log_path = directory / "log"
        self.args = tuple(args)
        self._prefix = tuple(prefix)
        self._launch = launch
        self._env = dict(env)
        self.address = ""
        self.process = self._start()

    def _start(self) -> Process:
        self.directory.mkdir(parents=True, exist_ok=True)
        args = ("serve", *self.args, "--state-dir", str(self.directory / "state"))
        self.started_at = time.monotonic()
        with self.log_path.open("ab") as log:
            self._log_from = log.tell()
            return self._launch(args, self._env, log, self._prefix)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        """Return what the present process has printed."""
        with self.log_path.open("rb") as file:
            file.seek(self._log_from)
            return file.read().decode(errors="replace")

    def is_ready(self) -> bool:
        """Whether the present process has said that it serves."""
        found = _READY.search(self.log())
        if found:
            self.address = found[1]
        return found is not None

    def wait_ready(self, deadline: float) -> str:
        """Wait for the line that says it serves; return the address. `deadline` is monotonic.

        Raises SwarmdError with the end of its log when it ends or is not ready in time.
        """
        while True:
            alive = self.alive
            if self.is_ready():
                return self.address
            if not alive or time.monotonic() > deadline:
                state = "did not become ready" if alive else f"ended with {self.process.returncode}"
                raise SwarmdError(f"a node {state}; its log ends:\n{self.log()[-_LOG_TAIL:]}")
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process still runs."""
        if self.alive:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout: float = 15.0) -> int:
        """Ask it to drain and exit; insist after `timeout` seconds. Returns the exit code."""
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def restart(self) -> None:
        """Start the same node again, with the same flags and state directory."""
        if self.alive:
            raise SwarmdError("the node still runs")
        with endings.held():
            self.process = self._start()


class LocalSwarm:
    """Nodes with the given spans of one model; a context manager that leaves nothing behind.

    `spans` are values of `--blocks`, one per node. All nodes are started at once; each knows the
    addresses of the first two. While it stands, signals end this process as `endings` says.
    """

    def __init__(
        self,
        model: str,
        spans: Sequence[str],
        *,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        directory: Path | None = None,
        launch: Launch = execute,
    ) -> None:
        """`launch` starts the processes."""
        self.model = model
        self._launch = launch
        self._flags = tuple(flags)
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._temporary = None
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="swarmd-")
            directory = Path(self._temporary.name)
        self.directory = directory
        self.nodes: list[LocalNode] = []
        self._seeds = [f"127.0.0.1:{free_port()}" for _ in range(min(2, len(spans)))]
        endings.begin()
        self._stands = True
        try:
            for span in spans:
                self.add(span)
        except BaseException:
            self.stop()
            raise

    def add(
        self, span: str, *flags: str, model: str | None = None, prefix: Sequence[str] = ()
    ) -> LocalNode:
        """Start one more node; it is not ready yet. `prefix` as for `LocalNode`."""
        index = len(self.nodes)
        listen = self._seeds[index] if index < len(self._seeds) else "127.0.0.1:0"
        args = [model or self.model, "--blocks", span, "--listen", listen]
        args += ["--dht-listen", "127.0.0.1:0", *self._flags, *flags]
        seeds = [seed for seed in self._seeds if seed != listen]
        if seeds:
            args += ["--peers", ",".join(seeds)]
        directory = self.directory / f"node{index}"
        with endings.held():
            node = LocalNode(args, directory, self._env, prefix, self._launch)
            self.nodes.append(node)
        return node

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until every node serves. Raises SwarmdError."""
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            node.wait_ready(deadline)

    @property
    def addresses(self) -> list[str]:
        """gRPC addresses of the nodes that run."""
        return [node.address for node in self.nodes if node.alive and node.address]

    @property
    def known(self) -> list[str]:
        """gRPC addresses of all nodes that have ever served, whether they run or not."""
        return [node.address for node in self.nodes if node.address]

    def node_of(self, pid: int) -> LocalNode:
        """Return the node with this process id. Raises SwarmdError if there is none."""
        for node in self.nodes:
            if node.pid == pid:
                return node
        raise SwarmdError(f"no node of this swarm has process id {pid}")

    def stop(self) -> None:
        """End all processes and remove their files."""
        with endings.held():
            for node in self.nodes:
                node.signal(signal.SIGKILL)
            for node in self.nodes:
                node.process.wait()
            if self._temporary is not None:
                self._temporary.cleanup()
            if self._stands:
                self._stands = False
                endings.end()

    def __enter__(self) -> LocalSwarm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """Return a TCP port that was free a moment ago, and still is when a node comes to it.

    The system gives out others by itself, so nobody else takes it in between, or while its node is
    started again.
    """
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(*_PORTS)
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
