"""A crowd on two stages: they take their sessions in shares, and both compute at the same time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e_swarm import READY_S

from swarmd.cli.bench import models
from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client
from swarmd.core.results import Microbatch

SESSIONS = 16
TOKENS = 40
TRIES = 3
"""A machine that has too much to do gives one stage less time than the other, or none at all."""
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "64MiB")


def overlap(one: Sequence[Microbatch], other: Sequence[Microbatch]) -> float:
    """Seconds in which both compute."""
    return sum(max(0.0, min(a.ended, b.ended) - max(a.began, b.began)) for a in one for b in other)


@pytest.mark.alone
def test_stages_share_a_crowd_and_compute_at_the_same_time() -> None:
    model = models.find("small", "float32")
    with LocalSwarm(str(model.directory), model.spans(2), flags=FLAGS) as nodes:
        nodes.wait_ready(READY_S)
        with Client(nodes.addresses[0], timeout=120.0) as client:
            complaints: list[str] = []
            while not complaints or complaints[-1]:
                assert len(complaints) < TRIES, complaints
                complaints.append(complaint(crowd(nodes, client)))


def crowd(nodes: LocalSwarm, client: Client) -> list[list[Microbatch]]:
    """Have all sessions at once; return the microbatches of each stage in which all decoded."""

    def one(number: int) -> tuple[int, ...]:
        ids = [(7 * number + i) % 500 for i in range(24)]
        done = client.complete(ids, max_tokens=TOKENS, ids_only=True, ignore_eos=True)
        return done.token_ids

    began = time.time()
    with ThreadPoolExecutor(SESSIONS) as pool:
        together = list(pool.map(one, range(SESSIONS)))
    stages = []
    for address in nodes.addresses:
        with Client(address) as each:
            batches = each.status(microbatches=True).microbatches
        stages.append([m for m in batches if m.began >= began and 0 < m.decodes == m.steps])
    assert one(3) == together[3]
    return stages


def complaint(decoding: Sequence[Sequence[Microbatch]]) -> str:
    """What is wrong with how the stages decoded, "" if nothing is."""
    for batches in decoding:
        crowded = batches[len(batches) // 8 : -len(batches) // 8]
        mean = sum(m.decodes for m in crowded) / len(crowded)
        # Neither one by one nor all at once, which would leave the other stage idle. How many
        # shares are best depends on the machine: where a token is underway for longer than a step
        # takes, a third and a fourth share fill the stages meanwhile.
        if not 2 <= mean <= 13:
            return f"{mean:.1f} decodes in a microbatch: {[m.decodes for m in crowded]}"
    busy = [sum(m.ended - m.began for m in batches) for batches in decoding]
    both = overlap(*decoding)
    return "" if both >= 0.5 * min(busy) else f"of {busy} s both compute for {both} s"
