"""Spans that overlap are entered and left in the middle, at the start and in a repair."""

from __future__ import annotations

from pathlib import Path

from e2e_swarm import READY_S, wait_for_replicas
from forked import forked

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client

PROMPT = "def read_file(path):"
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "64MiB", "--gap-wait", "120")


def test_a_newcomer_takes_over_from_the_middle_of_its_span(model_dir: Path) -> None:
    with LocalSwarm(str(model_dir), ("0:5", "3:8"), flags=FLAGS, launch=forked) as nodes:
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes, replicas=1)
        with Client(nodes.addresses, timeout=200.0) as client:
            plain = client.complete(PROMPT, max_tokens=60, ignore_eos=True)
            border = plain.route[1].blocks.start
            assert 3 <= border <= 5
            tokens = client.generate(PROMPT, max_tokens=60, ignore_eos=True)
            for count, _ in enumerate(tokens, start=1):
                if count == 25:
                    border = tokens.route[1].blocks.start
                    nodes.node_of(tokens.route[1].pid).kill()
                    newcomer = nodes.add("1:8")
        with Client(nodes.nodes[0].address) as survivor:
            counters = survivor.status().counters
    done = tokens.result
    assert done.token_ids == plain.token_ids
    assert done.repairs >= 1
    # It serves 1:8, and was entered behind the start of its span.
    assert done.route[1].pid == newcomer.pid
    assert done.route[1].blocks.start > 1
    # Where the dead one had been, unless it was seen only when the survivor looked at itself again.
    if done.route[1].blocks.start == border:
        # The survivor computed nothing again but the last chunk, whose token was lost.
        assert counters["hop_recomputed_positions"] <= 2
    assert done.recomputed_tokens >= done.num_prompt_tokens + 24, "but the newcomer everything"
