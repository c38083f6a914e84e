"""A crowd of all sorts on little memory: each gets the ids that it gets alone, and no KV is left.

Random lengths, arrivals, shared beginnings, cancellations and forks, from one seed.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from e2e_swarm import READY_S
from forked import forked

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import AsyncClient, Client
from swarmd.core.errors import KVExhausted
from swarmd.core.results import KeptSession

SESSIONS = 64
FLAGS = ("--dtype", "float32", "--threads", "1", "--chunk-size", "64", "--kv-memory", "4MiB")
"""1,365 tokens on each of two nodes: a small part of what the crowd asks for at once."""
KEEP_S = 5.0


@dataclass(frozen=True)
class Job:
    """One session of the crowd."""

    ids: tuple[int, ...]
    tokens: int
    starts_at: float
    leaves_after: int | None
    priority: int
    client: str = ""
    forks: tuple[Job, ...] = ()
    """They go on from this one, all at once."""

    async def together(self, client: AsyncClient) -> list[tuple[int, ...]]:
        """Run in the crowd, and the forks then; where nothing can be kept now, without."""
        await asyncio.sleep(self.starts_at)
        kept = None
        if not self.forks:
            got = await self.read(client, self.ids)
        else:
            try:
                done = await client.complete(list(self.ids), **self.how, keep_alive=KEEP_S)
            except KVExhausted:
                done = await client.complete(list(self.ids), **self.how)
            got, kept = done.token_ids, done.kept
        past = (*self.ids, *got)
        runs = [fork.go_on(client, past, kept) for fork in self.forks]
        return [got, *await asyncio.gather(*runs)]

    async def go_on(
        self, client: AsyncClient, past: tuple[int, ...], kept: KeptSession | None
    ) -> tuple[int, ...]:
        if kept is None:
            return await self.read(client, (*past, *self.ids))
        return await self.read(client, self.ids, continue_from=kept, recompute=True)

    async def alone(self, client: AsyncClient, salt: str) -> list[tuple[int, ...]]:
        """Run by itself, and each fork as if nothing had been before."""
        got = await self.read(client, self.ids, cache_salt=salt)
        past = (*self.ids, *got)
        return [
            got,
            *[
                await fork.read(client, (*past, *fork.ids), cache_salt=f"{salt} fork {number}")
                for number, fork in enumerate(self.forks)
            ],
        ]

    @property
    def how(self) -> dict[str, Any]:
        return {
            "max_tokens": self.tokens,
            "ids_only": True,
            "ignore_eos": True,
            "cache_salt": "crowd",
            "priority": self.priority,
            "client": self.client,
        }

    async def read(
        self, client: AsyncClient, ids: tuple[int, ...], **changes: Any
    ) -> tuple[int, ...]:
        stream = client.generate(list(ids), **(self.how | changes))
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
    jobs: list[Job] = []
    while sum(1 + len(job.forks) for job in jobs) < SESSIONS:
        shared = draw.choice(preambles)[: draw.choice([0, 50, 130, 200, 390])]
        own = [draw.randrange(500) for _ in range(draw.randint(1, 60))]
        tokens = draw.randint(4, 40)
        leaves = draw.randint(1, 3) if draw.random() < 0.15 else None
        forks = 0 if leaves or draw.random() < 0.7 else draw.randint(1, 3)
        job = Job(
            (*shared, *own),
            tokens,
            draw.uniform(0, 3),
            leaves,
            draw.choice([-1, 0, 0, 0, 1]),
            draw.choice(["one", "other"]),
            tuple(fork_of(draw) for _ in range(forks)),
        )
        jobs.append(job)
    return jobs


def fork_of(draw: random.Random) -> Job:
    tail = tuple(draw.randrange(500) for _ in range(draw.randint(0, 20)))
    leaves = draw.randint(1, 3) if draw.random() < 0.15 else None
    return Job(tail, draw.randint(4, 20), 0.0, leaves, 0)


@pytest.mark.parametrize("seed", [7])
def test_a_crowd_on_little_memory_disturbs_nobody(model_dir: Path, seed: int) -> None:
    jobs = crowd(seed)
    with LocalSwarm(str(model_dir), ("0:4", "4:8"), flags=FLAGS, launch=forked) as nodes:
        nodes.wait_ready(READY_S)

        async def together() -> list[list[tuple[int, ...]]]:
            async with AsyncClient(nodes.addresses, timeout=120.0) as client:
                return await asyncio.gather(*(job.together(client) for job in jobs))

        async def alone() -> list[list[tuple[int, ...]]]:
            async with AsyncClient(nodes.addresses, timeout=120.0) as client:
                return [await job.alone(client, f"alone {i}") for i, job in enumerate(jobs)]

        crowded = asyncio.run(together())
        wait_until_kv_is_free(nodes)
        assert crowded == asyncio.run(alone())
        wait_until_kv_is_free(nodes)
        with Client(nodes.addresses[0]) as client:
            counters = client.status().counters
        assert counters["hop_prefix_hit_positions"] > 0
        assert counters["hop_prefix_evicted_positions"] > 0
        assert counters["hop_continued"] > 0
        assert counters["hop_kept_bytes"] == 0
        # A session that cannot be kept is refused, and all others come to their end.
        assert counters["coordinator_sessions_failed"] <= sum(bool(job.forks) for job in jobs)


def wait_until_kv_is_free(nodes: LocalSwarm) -> None:
    deadline = time.monotonic() + 10.0 + KEEP_S
    for address in nodes.addresses:
        with Client(address) as client:
            while (counters := client.status().counters)["hop_kv_reserved_bytes"]:
                assert time.monotonic() < deadline, "KV is still in use"
                time.sleep(0.05)
            assert counters["hop_sessions"] == 0
