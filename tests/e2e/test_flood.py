"""Many more clients than a node takes: the others are told when to come again, none disturbs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from e2e_swarm import READY_S
from forked import forked

from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import AsyncClient
from swarmd.core.errors import QueueFull

CLIENTS = 300
PLACES = 6
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "64MiB")
IDS = list(range(40, 60))


def test_a_flood_is_refused_by_type_and_running_sessions_stay_exact(model_dir: Path) -> None:
    flags = (*FLAGS, "--max-sessions", str(PLACES))
    with LocalSwarm(str(model_dir), ("0:8",), flags=flags, launch=forked) as nodes:
        nodes.wait_ready(READY_S)
        (address,) = nodes.addresses

        async def run(client: AsyncClient, tokens: int) -> tuple[int, ...]:
            stream = client.generate(IDS, max_tokens=tokens, ids_only=True, ignore_eos=True)
            async with stream:
                return tuple([token.id async for token in stream])

        async def flood() -> tuple[tuple[int, ...], tuple[int, ...], list[object]]:
            async with AsyncClient(address, timeout=120.0) as client:
                alone = await run(client, 200)
                running = asyncio.create_task(run(client, 200))
                others = await asyncio.gather(
                    *(run(client, 8) for _ in range(CLIENTS)), return_exceptions=True
                )
                return alone, await running, list(others)

        alone, beside, others = asyncio.run(flood())
        assert beside == alone
        refused = [each for each in others if isinstance(each, BaseException)]
        served = [each for each in others if not isinstance(each, BaseException)]
        assert {type(error) for error in refused} == {QueueFull}
        assert all(error.retry_after_s > 0 for error in refused if isinstance(error, QueueFull))
        assert served
        assert set(served) == {alone[:8]}
        assert asyncio.run(again(address)) == alone[:8], "it serves on"


async def again(address: str) -> tuple[int, ...]:
    """Ask once more, alone."""
    async with AsyncClient(address, timeout=60.0) as client:
        stream = client.generate(IDS, max_tokens=8, ids_only=True, ignore_eos=True)
        async with stream:
            return tuple([token.id async for token in stream])
