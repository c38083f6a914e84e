"""Real daemons on loopback for the end-to-end tests: one swarm of six for most of them.

Two nodes hold each span, so that every hop of a route can be killed; `whole_swarm` starts those
again that a test has killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd.cli.demo import demo_model
from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client

SPANS = ("0:3", "0:3", "3:6", "3:6", "6:8", "6:8")
FLAGS = ("--threads", "1", "--kv-memory", "64MiB", "--chunk-size", "64")
READY_S = 240.0


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The model in the package: 8 blocks."""
    return demo_model()


@pytest.fixture(scope="session")
def swarm(model_dir: Path) -> Iterator[LocalSwarm]:
    """Six nodes in fp32, started once."""
    logs = os.environ.get("TEST_SWARM_DIR")
    flags = ("--dtype", "float32", *FLAGS)
    with LocalSwarm(
        str(model_dir), SPANS, flags=flags, directory=Path(logs) if logs else None
    ) as nodes:
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes)
        yield nodes


@pytest.fixture
def whole_swarm(swarm: LocalSwarm) -> LocalSwarm:
    """The same swarm with everybody alive."""
    revive(swarm)
    return swarm


@pytest.fixture
def client(whole_swarm: LocalSwarm) -> Iterator[Client]:
    """A client that knows all nodes."""
    with Client(whole_swarm.addresses, timeout=120.0) as one:
        yield one


def revive(nodes: LocalSwarm) -> None:
    """Start again whoever has been killed, and wait until everybody sees everybody."""
    dead = [node for node in nodes.nodes if not node.alive]
    for node in dead:
        node.restart()
    if dead:
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes)


def wait_for_replicas(nodes: LocalSwarm, replicas: int = 2, timeout: float = 60.0) -> None:
    """Wait until every living node sees each block that often, by processes that live."""
    deadline = time.monotonic() + timeout
    waiting = set(nodes.addresses)
    pids = {node.pid for node in nodes.nodes if node.alive}
    while waiting:
        assert time.monotonic() < deadline, f"not seen everywhere: {waiting}"
        for address in sorted(waiting):
            with Client(address, timeout=30.0) as one:
                status = one.status()
            seen = {peer.pid for peer in status.peers if peer.state == "serving"}
            if status.models and status.models[0].replicas >= replicas and pids <= seen:
                waiting.discard(address)
        time.sleep(0.1)
