"""A crowd of all sorts on little memory: each gets the ids that it gets alone, and no KV is left.

Random lengths, arrivals, shared beginnings and cancellations, from one seed.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2e_swarm import READY_S

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import AsyncClient, Client

SESSIONS = 64
FLAGS = ("--dtype", "float32", "--threads", "1", "--chunk-size", "64", "--kv-memory", "4MiB")
"""About 2,700 tokens on each of two nodes: a sixth of what the crowd asks for at once."""


@dataclass(frozen=True)
class Job:
    """One session of the crowd."""

    ids: tuple[int, ...]
    tokens: int
    starts_at: float
    leaves_after: int | None
    priority: int

    async def run(self, client: AsyncClient, salt: str) -> tuple[int, ...]:
        stream = client.generate(
            list(self.ids),
            max_tokens=self.tokens,
            ids_only=True,
            ignore_eos=True,
            cache_salt=salt,
            priority=self.priority,
        )
        got: list[int] = []
        async with stream:
            async for token in stream:
                got.append(token.id)
                if len(got) == self.leaves_after:
                    break
        return tuple(got)


def crowd(seed: int) -> list[Job]:
    draw = random.Random(seed)
    preambles = [[draw.randrange(500) for _ in range(400)] for _ in range(4)]
    jobs = []
    for _ in range(SESSIONS):
        shared = draw.choice(preambles)[: draw.choice([0, 50, 130, 200, 390])]
        own = [draw.randrange(500) for _ in range(draw.randint(1, 60))]
        tokens = draw.randint(4, 40)
        leaves = draw.randint(1, 3) if draw.random() < 0.15 else None
        jobs.append(
            Job((*shared, *own), tokens, draw.uniform(0, 3), leaves, draw.choice([-1, 0, 0, 0, 1]))
        )
    return jobs


@pytest.mark.parametrize("seed", [7])
def test_a_crowd_on_little_memory_disturbs_nobody(model_dir: Path, seed: int) -> None:
    jobs = crowd(seed)
    with LocalSwarm(str(model_dir), ("0:4", "4:8"), flags=FLAGS) as nodes:
        nodes.wait_ready(READY_S)

        async def late(job: Job, client: AsyncClient) -> tuple[int, ...]:
            await asyncio.sleep(job.starts_at)
            return await job.run(client, "crowd")

        async def together() -> list[tuple[int, ...]]:
            async with AsyncClient(nodes.addresses, timeout=120.0) as client:
                return await asyncio.gather(*(late(job, client) for job in jobs))

        async def alone() -> list[tuple[int, ...]]:
            async with AsyncClient(nodes.addresses, timeout=120.0) as client:
                return [await job.run(client, f"alone {i}") for i, job in enumerate(jobs)]

        crowded = asyncio.run(together())
        wait_until_kv_is_free(nodes)
        assert crowded == asyncio.run(alone())
        wait_until_kv_is_free(nodes)
        with Client(nodes.addresses[0]) as client:
            counters = client.status().counters
        assert counters["hop_prefix_hit_positions"] > 0
        assert counters["hop_prefix_evicted_positions"] > 0
        assert counters["coordinator_sessions_failed"] == 0


def wait_until_kv_is_free(nodes: LocalSwarm) -> None:
    deadline = time.monotonic() + 10.0
    for address in nodes.addresses:
        with Client(address) as client:
            while (counters := client.status().counters)["hop_kv_reserved_bytes"]:
                assert time.monotonic() < deadline, "KV is still in use"
                time.sleep(0.05)
            assert counters["hop_sessions"] == 0
