"""How soon nodes see each other through the directory, and what it costs while nothing happens.

Eight directories with real processes on loopback, more than hold a record: a change of one node's
announcement until another one sees it; the directory process and p2pd killed, until both ways work
again; CPU of both while each node announces itself every five seconds. Prints a line a figure,
writes bench/results/directory.json, and ends with 1 if a bar is missed.

    python bench/directory.py [--nodes 8] [--rounds 20] [--idle 30]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from swarmd.cli.bench.machine import circumstances
from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.span import Span
from swarmd.swarm.dht import DhtConfig, DhtDirectory
from swarmd.swarm.identity import Identity

RESULTS = Path(__file__).parent / "results" / "directory.json"
VISIBLE_BAR_S = 1.0
BACK_BAR_S = 5.0
ANNOUNCE_S = 5.0
PATIENCE_S = 60.0
MODEL = ModelInfo("toy", "d1" * 32, 64, 16, 100, 512)


@dataclass
class Node:
    """A directory, and what waits for news from it."""

    directory: DhtDirectory
    identity: Identity
    start: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    """Where the spans of others begin."""

    async def announce(self) -> None:
        now, span = time.time(), Span(self.start, self.start + 1)
        await self.directory.publish(
            Announcement(
                self.identity.peer_id,
                "127.0.0.1:7420",
                MODEL,
                span,
                NodeState.SERVING,
                issued_at=now,
                expires_at=now + 30.0,
            )
        )

    async def watch(self) -> None:
        """Look as a node does: wait until something changes."""
        while True:
            try:
                found = await self.directory.announcements(4.0)
            except Exception:
                await asyncio.sleep(0.05)  # its process is being started again
                continue
            self.seen = {a.peer_id: a.span.start for a in found}

    async def repeat(self) -> None:
        while True:
            await asyncio.sleep(ANNOUNCE_S)
            await self.announce()


async def until(condition: Callable[[], bool]) -> float:
    """Return the seconds until it is so."""
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def visible(nodes: list[Node], rounds: int) -> list[float]:
    """Change a node's announcement, each time another one's, until all others see it."""
    took = []
    for number in range(rounds):
        await asyncio.sleep(0.3)
        node = nodes[number % len(nodes)]
        node.start += 1
        peer, start = node.identity.peer_id, node.start
        began = time.monotonic()
        await node.announce()
        others = [other for other in nodes if other is not node]
        await until(lambda: all(other.seen.get(peer) == start for other in others))  # noqa: B023
        took.append(time.monotonic() - began)
    return took


async def back(nodes: list[Node], victim: Callable[[Node], psutil.Process]) -> list[float]:
    """Kill a process of each node in turn; until it sees others, and others see it, anew."""
    took = []
    for index, node in enumerate(nodes):
        other = nodes[index - 1]
        victim(node).send_signal(signal.SIGKILL)
        began = time.monotonic()
        for sender, receiver in ((node, other), (other, node)):
            sender.start += 1
            peer, start = sender.identity.peer_id, sender.start
            await retried(sender.announce)
            await until(lambda: receiver.seen.get(peer) == start)  # noqa: B023
        took.append(time.monotonic() - began)
    return took


async def retried(announce: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await announce()
            except Exception:
                await asyncio.sleep(0.05)


def child_of(node: Node) -> psutil.Process:
    """Its directory process."""
    assert node.directory.child_pid is not None
    return psutil.Process(node.directory.child_pid)


def p2pd_of(node: Node) -> psutil.Process:
    """The p2p daemon of its directory process."""
    return child_of(node).children()[0]


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def idle(nodes: list[Node], seconds: float) -> dict[str, float]:
    """Return milliseconds of CPU a second and node, of both processes."""
    each = {
        "process": [child_of(node) for node in nodes],
        "p2pd": [p2pd_of(node) for node in nodes],
    }
    before = {name: cpu_s(found) for name, found in each.items()}
    await asyncio.sleep(seconds)
    taken = {name: cpu_s(found) - before[name] for name, found in each.items()}
    return {name: round(1e3 * used / seconds / len(nodes), 1) for name, used in taken.items()}


async def measure(options: argparse.Namespace) -> dict[str, object]:
    async with AsyncExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarmd-")))
        nodes: list[Node] = []
        for index in range(options.nodes):
            identity = Identity.load_or_create(base / str(index))
            first = nodes[0].directory.addresses() if nodes else ()
            config = DhtConfig(base / str(index), peers=tuple(first))
            directory = await DhtDirectory.start(config, identity)
            stack.push_async_callback(directory.close)
            nodes.append(Node(directory, identity))
            await nodes[-1].announce()
        tasks = [asyncio.create_task(w()) for node in nodes for w in (node.watch, node.repeat)]
        stack.callback(lambda: [task.cancel() for task in tasks])
        await until(lambda: all(len(node.seen) == len(nodes) for node in nodes))
        return {
            "nodes": len(nodes),
            "idle_cpu_ms_per_s": await idle(nodes, options.idle),
            "visible_s": summary(await visible(nodes, options.rounds), VISIBLE_BAR_S),
            "process_killed_s": summary(await back(nodes, child_of), BACK_BAR_S),
            "p2pd_killed_s": summary(await back(nodes, p2pd_of), BACK_BAR_S),
        }


def summary(took: list[float], bar: float) -> dict[str, object]:
    worst = max(took)
    return {
        "p50": round(statistics.median(took), 3),
        "worst": round(worst, 3),
        "times": len(took),
        "bar": bar,
        "met": worst < bar,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to look at the CPU for")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    figures = asyncio.run(measure(options))
    for name, figure in figures.items():
        print(name, figure)
    options.output.write_text(json.dumps(circumstances() | figures, indent=1) + "\n")
    return 0 if all(f.get("met", True) for f in figures.values() if isinstance(f, dict)) else 1


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    sys.exit(main())
