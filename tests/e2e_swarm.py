"""What the end-to-end tests do with a swarm of real daemons between tests."""

from __future__ import annotations

import time

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client

READY_S = 240.0


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
