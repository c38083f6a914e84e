"""Nodes that chose their blocks themselves go where they are missing, and streams go on."""

from __future__ import annotations

import time
from pathlib import Path

from e2e_swarm import READY_S
from forked import forked

from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import Client
from swarmd.core.results import SwarmStatus

PROMPT = "def read_file(path):"
ROOM = "9.35MiB"
"""Of the demo model in float32: half of its blocks, with embedding and head."""
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "64MiB", "--weights-memory", ROOM)


def status_of(node: LocalNode) -> SwarmStatus:
    with Client(node.address, timeout=30.0) as one:
        return one.status()


def blocks_of(nodes: LocalSwarm) -> dict[int, str]:
    """Blocks by process, as the first living node sees them once all three serve."""
    deadline = time.monotonic() + 60.0
    while True:
        alive = [node for node in nodes.nodes if node.alive]
        peers = status_of(alive[0]).peers
        serving = {p.pid: str(p.blocks) for p in peers if p.state == "serving"}
        if {node.pid for node in alive} <= serving.keys():
            return serving
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_only_holder_dies_and_a_redundant_node_steps_in_while_the_session_waits(
    model_dir: Path,
) -> None:
    spans = ("auto",) * 3
    flags = (*FLAGS, "--gap-wait", "120", "--drain-timeout", "6")
    with LocalSwarm(str(model_dir), spans, flags=flags, launch=forked) as nodes:
        nodes.wait_ready(READY_S)
        held = blocks_of(nodes)
        (alone,) = [pid for pid, span in held.items() if [*held.values()].count(span) == 1]
        (span,) = {held[alone]}
        victim = nodes.node_of(alone)
        rest = [node for node in nodes.nodes if node is not victim]
        assert status_of(rest[0]).models[0].thin == (tuple(map(int, span.split(":"))),)
        with Client([node.address for node in rest], timeout=200.0) as client:
            plain = client.complete(PROMPT, max_tokens=80, ignore_eos=True)
            tokens = client.generate(PROMPT, max_tokens=80, ignore_eos=True)
            for count, _ in enumerate(tokens, start=1):
                if count == 25:
                    victim.kill()
                    began = time.monotonic()
        assert tokens.result.token_ids == plain.token_ids
        moved = {pid for pid, where in blocks_of(nodes).items() if where == span} - {alone}
        print(f"covered again and done after {time.monotonic() - began:.1f} s")
        assert len(moved) == 1, "one of the two has moved, in the same process"
        mover = nodes.node_of(moved.pop())
        assert mover.alive
        assert status_of(mover).counters["node_moves"] == 1
        # The other one needs these blocks, and nobody can take them; who held them died just now.
        assert mover.stop(timeout=60.0) == 0
        assert f"waits for another holder blocks={span} seconds=" in mover.log()
        assert f"no other holder came in time blocks={span}" in mover.log()


def test_a_notice_drains_the_node_and_it_exits_with_zero(model_dir: Path, tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    flags = (*FLAGS, "--preemption", f"file:{notice}")
    with LocalSwarm(str(model_dir), ("0:8",), flags=flags, launch=forked) as nodes:
        nodes.wait_ready(READY_S)
        (node,) = nodes.nodes
        notice.write_text("60")
        assert node.process.wait(60.0) == 0
        assert "notice=file" in node.log()
