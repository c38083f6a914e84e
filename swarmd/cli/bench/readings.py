"""Counters of the daemons at a moment, and what happened between two moments.

What the counters mean is `swarmd.node.status`'s; this reads them over gRPC.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from swarmd.cli.bench.overlap import Interval, share_of_all

if TYPE_CHECKING:
    from swarmd.cli.local_swarm import LocalNode
    from swarmd.client import AsyncClient


@dataclass(frozen=True, slots=True)
class Reading:
    """One daemon at one moment."""

    at: float
    """By the wall clock of this machine, as the intervals."""
    counters: Mapping[str, float]
    intervals: tuple[Interval, ...] = ()
    """In which it computed, as far back as it remembers."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """What one daemon did between two readings."""

    began: float
    ended: float
    cpu_s: float
    """Of the daemon, without its children."""
    busy_s: float
    """In `Stage.forward`, by the wall clock."""
    forward_cpu_s: float
    microbatches: float
    steps: float
    tokens: float
    intervals: tuple[Interval, ...] = ()

    @property
    def seconds(self) -> float:
        return self.ended - self.began

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
        began=before.at,
        ended=after.at,
        cpu_s=grown("node_cpu_s"),
        busy_s=grown("compute_busy_s"),
        forward_cpu_s=grown("compute_forward_cpu_s"),
        microbatches=grown("compute_microbatches"),
        steps=grown("compute_steps"),
        tokens=grown("compute_tokens"),
        intervals=after.intervals,
    )


def all_busy(works: Sequence[StageWork]) -> float:
    """Return the share of the time in which all of them computed."""
    start = max(work.began for work in works)
    end = min(work.ended for work in works)
    return share_of_all([work.intervals for work in works], start, end)


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

    async def read(self, *, intervals: bool = False) -> list[Reading]:
        """Return one reading per daemon, in the order of the nodes.

        With `intervals` at the end only: to tell of thousands takes a daemon milliseconds, which
        would count as the work of what is measured.
        """
        return list(await asyncio.gather(*(_read(one, intervals) for one in self._clients)))

    async def exact(self) -> bool:
        """Whether every stage promises the same ids whatever runs beside a session."""
        status = await self._clients[0].status()
        return all(peer.ragged and peer.replay_exact for peer in status.peers)


async def _read(client: AsyncClient, intervals: bool) -> Reading:
    status = await client.status(microbatches=intervals)
    found = tuple((m.began, m.ended) for m in status.microbatches)
    return Reading(time.time(), status.counters, found)
