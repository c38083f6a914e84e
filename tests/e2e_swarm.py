"""What the end-to-end tests do with a swarm of real daemons between tests."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client
from swarmd.pipeline.causes import Cause

READY_S = 240.0
FAULTS = tuple(f"coordinator_repairs_{cause}" for cause in Cause if cause is not Cause.SLOW)


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


def counters(nodes: LocalSwarm) -> dict[int, Mapping[str, float]]:
    """What each node has counted, by process id."""
    counted = {}
    for node in nodes.nodes:
        if node.alive:
            with Client(node.address, timeout=30.0) as one:
                counted[node.pid] = one.status().counters
    return counted


def growth(
    name: str, before: dict[int, Mapping[str, float]], after: dict[int, Mapping[str, float]]
) -> float:
    """By how much a counter has grown, over the nodes that are still there."""
    return sum(after[pid][name] - before[pid][name] for pid in after)


@contextmanager
def no_faults(nodes: LocalSwarm) -> Iterator[None]:
    """No session is repaired or goes on elsewhere meanwhile but because a node is slow.

    That is nobody's fault: where others hold its blocks, a node that a busy machine gives no time
    is rightly left, as a hop and as a coordinator.
    """
    before = counters(nodes)
    yield
    after = counters(nodes)
    assert before.keys() == after.keys(), "nodes have died"
    faults = {name: growth(name, before, after) for name in FAULTS}
    assert not any(faults.values()), faults
    moved = growth("coordinator_moved", before, after)
    assert (resumed := growth("coordinator_resumed", before, after)) <= moved, (resumed, moved)
