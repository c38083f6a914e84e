"""A coordinator falls silent: whoever goes on does not wait for it as long as the client has."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from swarmd.pipeline.policy import DriverPolicy
from swarmd.sim.client import Client
from swarmd.sim.network import Climate
from swarmd.sim.world import World

FAIR = Climate(delay=(0.001, 0.005), notice=(0.001, 0.01), view_delay=(0.01, 0.1))
FROZEN_S = 60.0
NOTICED_S = 2.0


@dataclass
class Story:
    """A client in the middle of its stream; its coordinator is the first hop as well."""

    world: World
    client: Client

    def freeze_coordinator(self) -> str:
        assert self.client.call is not None
        peer_id, now = self.client.call.peer_id, self.world.timeline.now
        process = self.world.machines[peer_id].running
        process.loop.frozen_until = now + FROZEN_S
        self.world.network.froze(process.links)
        for call in process.doors.calls:
            call.break_after(NOTICED_S)
        return peer_id

    def seconds_to_a_token(self) -> float:
        """From the first attempt to resume to the next token."""
        world, client, before = self.world, self.client, len(self.client.ids)
        assert world.run_until(lambda: client.resumes == 1, 10.0)
        began = world.timeline.now
        assert world.run_until(lambda: len(client.ids) > before, 30.0)
        return world.timeline.now - began


def story(seed: int) -> Story:
    world = World(seed, FAIR)
    world.random_routes, world.kv_bytes = False, 1 << 20
    half = world.num_blocks // 2
    for start, end in ((0, half), (0, half), (half, world.num_blocks), (half, world.num_blocks)):
        world.add(start, end)
    world.start()
    client = world.client(tuple(range(20)), 200)
    client.begin(next(iter(world.machines)))
    assert world.run_until(lambda: len(client.ids) >= 10, 60.0)
    return Story(world, client)


@pytest.mark.parametrize("seed", range(6))
def test_whoever_goes_on_waits_only_for_a_moment_for_a_coordinator_that_fell_silent(
    seed: int,
) -> None:
    state = random.getstate()
    random.seed(seed)  # the shells draw their jitter there
    told = story(seed)
    try:
        lost = told.freeze_coordinator()
        assert told.seconds_to_a_token() < DriverPolicy().open_timeout
        assert lost not in {hop.peer_id for hop in told.client.route}
        others = [p for p in told.world.processes() if p.machine.peer_id != lost]
        told.world.run_until(lambda: bool(told.client.ended), 60.0)
        assert told.client.ended == "length"
        assert not any(process.routes.distrusted() - {lost} for process in others)
    finally:
        told.world.close()
        random.setstate(state)


def test_one_that_was_taken_for_lost_and_lives_keeps_its_part_and_nothing_is_computed_again() -> (
    None
):
    state = random.getstate()
    random.seed(1)
    told = story(1)
    try:
        call, route = told.client.call, told.client.route
        assert call is not None
        assert call.peer_id in {hop.peer_id for hop in route}
        told.client.desert()
        told.seconds_to_a_token()
        assert told.client.route == route
        tables = [process.table.counters for process in told.world.processes()]
        assert sum(table.recomputed_positions for table in tables) <= 2 * len(route)
    finally:
        told.world.close()
        random.setstate(state)
