"""Spans that overlap are entered in the middle, at the start and in a repair."""

from __future__ import annotations

from pathlib import Path

from e2e_swarm import READY_S, wait_for_replicas

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client

PROMPT = "def read_file(path):"
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "64MiB")


def test_a_hop_is_entered_in_the_middle_of_its_span_also_in_a_repair(model_dir: Path) -> None:
    with LocalSwarm(str(model_dir), ("0:5", "3:8", "2:8"), flags=FLAGS) as nodes:
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes, replicas=1)
        with Client(nodes.addresses, timeout=120.0) as client:
            plain = client.complete(PROMPT, max_tokens=60, ignore_eos=True)
            tokens = client.generate(PROMPT, max_tokens=60, ignore_eos=True)
            for count, _ in enumerate(tokens, start=1):
                if count == 25:
                    second = tokens.route[1]
                    assert (second.blocks.start, second.blocks.end) == (5, 8)
                    nodes.node_of(second.pid).kill()
    done = tokens.result
    assert done.token_ids == plain.token_ids
    assert done.repairs >= 1
    assert [str(hop.blocks) for hop in done.route] == ["0:5", "5:8"]
    assert done.route[1].pid != second.pid
