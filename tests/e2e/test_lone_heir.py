"""When the only other holder of lost blocks is a hop already, it takes them over as well."""

from __future__ import annotations

from pathlib import Path

from e2e_swarm import READY_S, wait_for_replicas
from forked import forked

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client

PROMPT = "def read_file(path):"
TOKENS = 120
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "64MiB", "--gap-wait", "120")


def test_a_neighbour_that_holds_everything_takes_over(model_dir: Path) -> None:
    with LocalSwarm(str(model_dir), ("0:4", "3:8"), flags=FLAGS, launch=forked) as nodes:
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes, replicas=1)
        with Client(nodes.addresses, timeout=200.0) as client:
            plain = client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True)
            tokens = client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True)
            for count, _ in enumerate(tokens, start=1):
                if count == 25:
                    nodes.node_of(tokens.route[1].pid).kill()
                    heir = nodes.add("0:8")
                if count == 60:
                    assert tokens.route[1].pid == heir.pid
                    nodes.node_of(tokens.route[0].pid).kill()
    done = tokens.result
    assert done.token_ids == plain.token_ids
    assert [hop.pid for hop in done.route] == [heir.pid]
    assert [str(hop.blocks) for hop in done.route] == ["0:8"]
