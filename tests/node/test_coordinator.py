"""A node's coordinator with routes and links that the test holds in its hand."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from swarmd.core.errors import KVExhausted
from swarmd.core.frames import SessionFrame
from swarmd.core.route import Route
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.node.coordinator import Coordinator, CoordinatorLimits
from swarmd.node.requests import Generation
from swarmd.node.routes import Asked
from swarmd.pipeline import events as ev
from swarmd.pipeline.policy import DriverPolicy
from swarmd.toys import toy_model


class NoRoom:
    """Routes of a swarm whose KV is taken."""

    def __init__(self) -> None:
        self.asked = 0

    def find(
        self, spans: Sequence[Span], exclude: frozenset[str], keep: Route, asked: Asked
    ) -> Route:
        self.asked += 1
        raise KVExhausted("all of it is taken")

    def ended(self, route: Route, positions: int) -> None:
        """Nobody holds anything here."""

    def suspected(self) -> frozenset[str]:
        return frozenset()

    async def refresh(self) -> None:
        """There is nothing new."""


def generation(number: int) -> Generation:
    return Generation(
        session=bytes([number]) * 16,
        secret=bytes(16),
        prompt_ids=(1, 2, 3),
        sampling=SamplingParams(),
        max_tokens=4,
        stop=(),
        stop_token_ids=frozenset(),
        include_stop=False,
        ids_only=True,
    )


def coordinator(routes: NoRoom) -> Coordinator:
    def send(peer_id: str, batch: Sequence[SessionFrame]) -> None:
        raise AssertionError("nothing is to be sent")

    def spawn(work: Coroutine[Any, Any, None]) -> object:
        return asyncio.get_running_loop().create_task(work)

    policy = DriverPolicy(admission_wait=0.2, gap_poll=0.01)
    limits = CoordinatorLimits(max_sessions=8, chunk_size=64)
    return Coordinator("me", toy_model(), send, routes, policy, limits, spawn)


async def test_who_has_left_before_a_route_was_looked_for_does_not_stand_in_line() -> None:
    routes = NoRoom()
    one = coordinator(routes)
    with one.run(generation(1)):
        pass  # the client leaves at once: the search for a route comes after
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert routes.asked == 0
    assert len(one._line) == 0


async def test_who_waits_in_vain_is_told_so_and_leaves_the_line() -> None:
    one = coordinator(NoRoom())
    with one.run(generation(1)) as first, one.run(generation(2)) as second:
        ends = [[out async for out in run][-1] for run in (first, second)]
    assert all(isinstance(end, ev.Finished) for end in ends)
    assert all(isinstance(end.error, KVExhausted) for end in ends if isinstance(end, ev.Finished))
    assert len(one._line) == 0
    assert len(one) == 0
