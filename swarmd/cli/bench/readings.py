"""Counters of the daemons at a moment, and what happened between two moments.

What the counters mean is `swarmd.node.status`'s; this reads them over gRPC and the CPU from psutil.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from swarmd.cli.local_swarm import LocalNode
    from swarmd.client import AsyncClient


@dataclass(frozen=True, slots=True)
class Reading:
    """One daemon at one moment of the monotonic clock."""

    at: float
    cpu_s: float
    """User and system time of the daemon, without its children."""
    counters: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class StageWork:
    """What one daemon did between two readings."""

    seconds: float
    cpu_s: float
    busy_s: float
    """In `Stage.forward`, by the wall clock."""
    forward_cpu_s: float
    microbatches: float
    steps: float
    tokens: float

    @property
    def busy(self) -> float:
        """Share of the time that it computed."""
        return self.busy_s / self.seconds if self.seconds else 0.0

    @property
    def step_ms(self) -> float:
        """Wall time of a microbatch in `Stage.forward`, in the mean."""
        return 1000 * self.busy_s / self.microbatches if self.microbatches else 0.0

    @property
    def microbatch(self) -> float:
        """Steps that ran together, in the mean."""
        return self.steps / self.microbatches if self.microbatches else 0.0


def between(before: Reading, after: Reading) -> StageWork:
    """Return what came between two readings of the same daemon."""

    def grown(name: str) -> float:
        return after.counters.get(name, 0.0) - before.counters.get(name, 0.0)

    return StageWork(
        seconds=after.at - before.at,
        cpu_s=after.cpu_s - before.cpu_s,
        busy_s=grown("compute_busy_s"),
        forward_cpu_s=grown("compute_forward_cpu_s"),
        microbatches=grown("compute_microbatches"),
        steps=grown("compute_steps"),
        tokens=grown("compute_tokens"),
    )


def both_busy_at_least(works: Sequence[StageWork]) -> float:
    """Lower bound of the share of the time in which all compute: their idle shares never meet."""
    return max(0.0, 1.0 - sum(1.0 - min(1.0, work.busy) for work in works))


class Meter:
    """Reads all daemons of a swarm at once."""

    def __init__(self, nodes: Sequence[LocalNode]) -> None:
        self._nodes = nodes
        self._clients: list[AsyncClient] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        from swarmd.client import AsyncClient

        for node in self._nodes:
            client = AsyncClient(node.address, timeout=60.0)
            self._clients.append(await self._stack.enter_async_context(client))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def read(self) -> list[Reading]:
        """Return one reading per daemon, in the order of the nodes."""
        pairs = zip(self._nodes, self._clients, strict=True)
        return list(await asyncio.gather(*(_read(node.pid, one) for node, one in pairs)))

    async def exact(self) -> bool:
        """Whether every stage promises the same ids whatever runs beside a session."""
        status = await self._clients[0].status()
        return all(peer.ragged and peer.replay_exact for peer in status.peers)


async def _read(pid: int, client: AsyncClient) -> Reading:
    import psutil

    status = await client.status()
    times = psutil.Process(pid).cpu_times()
    return Reading(time.monotonic(), times.user + times.system, status.counters)
