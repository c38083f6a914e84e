"""A crowd that begins alike, over all nodes of a swarm with replicas, computes that once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from e2e_swarm import READY_S, wait_for_replicas
from forked import forked

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import AsyncClient

FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "512MiB")
SHARED = [7 * i % 400 for i in range(3008)]
"""To compute it takes longer than to wait for all of the crowd, however speeds are measured."""
CROWD = 32


def test_a_crowd_over_replicas_computes_its_beginning_once(model_dir: Path) -> None:
    spans = ("0:4", "0:4", "4:8", "4:8")
    with LocalSwarm(str(model_dir), spans, flags=FLAGS, launch=forked) as nodes:
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes)

        async def ask(number: int, clients: list[AsyncClient]) -> tuple[int, str]:
            done = await clients[number % len(clients)].complete(
                [*SHARED, number], max_tokens=4, ids_only=True, ignore_eos=True
            )
            return done.cached_tokens, done.coordinator.peer

        async def crowd() -> list[tuple[int, str]]:
            clients = [AsyncClient(address, timeout=60.0) for address in nodes.addresses]
            try:
                return await asyncio.gather(*(ask(n, clients) for n in range(CROWD)))
            finally:
                for client in clients:
                    await client.close()

        done = asyncio.run(crowd())
        assert len({coordinator for _, coordinator in done}) == 1
        assert sorted(cached for cached, _ in done) == [0] + [len(SHARED)] * (CROWD - 1)
