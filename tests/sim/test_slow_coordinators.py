"""A coordinator that is starved gives its sessions to others, where they get on better."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from swarmd.node.coordinator import EASED, STAYS_S
from swarmd.sim.client import Client
from swarmd.sim.network import Climate
from swarmd.sim.node import Process
from swarmd.sim.world import World

FAIR = Climate(delay=(0.001, 0.005), notice=(0.001, 0.01), view_delay=(0.01, 0.1))
SLOW = replace(FAIR, compute=(0.15, 0.25))


@contextmanager
def world_of(seed: int, replicas: int = 2, climate: Climate = FAIR) -> Iterator[World]:
    state = random.getstate()
    random.seed(seed)  # the shells draw their jitter there
    world = World(seed, climate)
    world.random_routes, world.kv_bytes = False, 1 << 20
    half = world.num_blocks // 2
    for _ in range(replicas):
        world.add(0, half)
    for _ in range(2):
        world.add(half, world.num_blocks)
    world.start()
    try:
        yield world
    finally:
        world.close()
        random.setstate(state)


def streams(world: World, at: str, count: int = 1, tokens: int = 220) -> list[Client]:
    clients = [world.client(tuple(range(n, n + 20)), tokens) for n in range(count)]
    for client in clients:
        client.begin(at)
    assert world.run_until(lambda: all(len(c.ids) >= 10 for c in clients), 60.0)
    return clients


def coordinator_of(client: Client) -> str:
    assert client.call is not None
    return client.call.peer_id


def ease(world: World, peer_id: str) -> None:
    process: Process = world.machines[peer_id].running
    process.loop.do(process.parts.ease)


@pytest.mark.parametrize("seed", range(4))
def test_first_its_blocks_go_to_another_holder_then_the_session(seed: int) -> None:
    with world_of(seed) as world:
        (client,) = streams(world, next(iter(world.machines)))
        before, had = coordinator_of(client), len(client.ids)
        ease(world, before)
        assert world.run_until(lambda: len(client.ids) > had and client.resumes == 1, 3.0)
        assert coordinator_of(client) != before
        assert before not in {hop.peer_id for hop in client.route}
        world.run_until(lambda: bool(client.ended), 120.0)
        assert (client.ended, client.resumes) == ("length", 1)


def test_nobody_is_moved_where_nobody_else_holds_the_blocks() -> None:
    with world_of(1, replicas=1) as world:
        (client,) = streams(world, next(iter(world.machines)))
        before, route = coordinator_of(client), client.route
        assert before in {hop.peer_id for hop in route}
        for _ in range(5):
            ease(world, before)
            world.run_for(0.3)
        assert (client.resumes, client.route) == (0, route)
        world.run_until(lambda: bool(client.ended), 120.0)
        assert (client.ended, client.resumes, client.calls) == ("length", 0, 1)


def test_a_session_moves_twice_a_minute_at_most_whoever_is_slow() -> None:
    with world_of(2, climate=SLOW) as world:
        (client,) = streams(world, next(iter(world.machines)))
        began = world.timeline.now
        while world.timeline.now < began + 59.0 and not client.ended:
            for peer_id in world.machines:  # all are slow, and take themselves for the only one
                ease(world, peer_id)
            world.run_for(1.0)
        assert 1 <= client.resumes <= 2
        assert not client.ended
        assert STAYS_S >= 30.0


def test_they_go_a_few_at_a_time() -> None:
    with world_of(3) as world:
        at = next(iter(world.machines))
        clients = streams(world, at, EASED + 4)
        there = [client for client in clients if coordinator_of(client) == at]
        assert len(there) > EASED
        ease(world, at)
        world.run_for(0.5)
        assert sum(client.resumes for client in there) <= EASED
        ease(world, at)
        world.run_until(lambda: all(client.ended for client in clients), 240.0)
        assert all(client.ended == "length" for client in clients)
        assert sum(client.resumes for client in there) == len(there)
