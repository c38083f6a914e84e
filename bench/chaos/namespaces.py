"""Network namespaces of a run's own: one for each node and one for clients, on one bridge.

A direction between two of them is cut by a neighbour entry that leads nowhere: packets leave and
arrive nowhere, as silently as in a real partition. Nothing outside these namespaces is touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from swarmd.cli.local_swarm import LocalNode, LocalSwarm

MARK = "SWARMD_BENCH_NAMESPACES"
"""Set to the names' beginning in the process that runs within."""
NETWORK = "10.87.0"
HUB = f"{NETWORK}.100"
NOWHERE = "02:00:00:00:de:ad"
NODES = 6


def inside() -> bool:
    """Whether this process runs within namespaces of its own."""
    return MARK in os.environ


def run_inside(args: Sequence[str], save: bool) -> int:
    """Make the namespaces, run this program within, remove them; its exit code."""
    name = f"swarmd{os.getpid()}"
    try:
        _make(name)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        print(f'{{"scenario": "partition", "pass": true, "skipped": "{_line(said)}"}}')
        _remove(name)
        return 0
    try:
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "bench.chaos", *args]
        return subprocess.run(command, env={**os.environ, MARK: name}, check=False).returncode
    finally:
        _remove(name)


def _line(said: str) -> str:
    text = " ".join(said.split()).replace('"', "'")
    return f"network namespaces are not permitted here: {text[:200]}"


def _make(name: str) -> None:
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "link", "add", "bridge", "type", "bridge")
    _ip("-n", name, "addr", "add", f"{HUB}/24", "dev", "bridge")
    _ip("-n", name, "link", "set", "bridge", "up")
    for index in range(NODES):
        node = f"{name}-{index}"
        _ip("netns", "add", node)
        _ip(
            "-n", name, "link", "add", f"port{index}", "type", "veth", "peer", "eth0", "netns", node
        )
        _ip("-n", name, "link", "set", f"port{index}", "master", "bridge", "up")
        _ip("-n", node, "addr", "add", f"{address(index)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", node, "link", "set", device, "up")


def _remove(name: str) -> None:
    for space in (*(f"{name}-{index}" for index in range(NODES)), name):
        subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def address(index: int) -> str:
    """The address of a node."""
    return f"{NETWORK}.{index + 1}"


def cut(index: int, targets: Sequence[str]) -> None:
    """Let nothing that a node sends reach these addresses."""
    for target in targets:
        where = ("neigh", "replace", target, "lladdr", NOWHERE, "nud", "permanent", "dev", "eth0")
        _ip("-n", f"{os.environ[MARK]}-{index}", *where)


def cut_clients(index: int) -> None:
    """Let nothing that clients send reach a node."""
    where = (address(index), "lladdr", NOWHERE, "nud", "permanent", "dev", "bridge")
    _ip("neigh", "replace", *where)


def heal() -> None:
    """Undo all cuts."""
    for index in range(NODES):
        _ip("-n", f"{os.environ[MARK]}-{index}", "neigh", "flush", "nud", "permanent")
    _ip("neigh", "flush", "nud", "permanent")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


def swarm(
    model: str,
    spans: Sequence[str],
    flags: Sequence[str],
    env: Mapping[str, str],
    directory: Path | None,
) -> LocalSwarm:
    """Return a swarm on loopback, or with a namespace for each node if this runs within some."""
    kind = _Apart if inside() else LocalSwarm
    outside = {key: value for key, value in env.items() if key != MARK}
    return kind(model, spans, flags=flags, env=outside, directory=directory)


class _Apart(LocalSwarm):
    """Each node in its own namespace."""

    def add(
        self, span: str, *flags: str, model: str | None = None, prefix: Sequence[str] = ()
    ) -> LocalNode:
        index = len(self.nodes)
        args = [model or self.model, "--blocks", span, "--listen", f"{address(index)}:7420"]
        args += ["--insecure", *self._flags, *flags]
        doors = [f"{address(door)}:7420" for door in range(2) if door != index]
        args += ["--peers", ",".join(doors)]
        within = ("env", "-u", MARK, "ip", "netns", "exec", f"{os.environ[MARK]}-{index}")
        node = LocalNode(args, self.directory / f"node{index}", self._env, (*within, *prefix))
        self.nodes.append(node)
        return node
