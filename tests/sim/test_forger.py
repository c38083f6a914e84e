"""A stranger meddles with sessions, also of nodes that stand still: it never has one of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swarmd.core.span import Span
from swarmd.sim.client import Client
from swarmd.sim.forger import STRANGER, bring, forged
from swarmd.sim.machine import Machine
from swarmd.sim.network import Climate
from swarmd.sim.node import Process
from swarmd.sim.world import World

FAIR = Climate(delay=(0.001, 0.005), notice=(0.001, 0.01), view_delay=(0.01, 0.1))


@contextmanager
def stream() -> Iterator[tuple[World, Client, Machine]]:
    """A client in the middle of its stream, and the machine of its last hop."""
    state = random.getstate()
    random.seed(2)  # the shells draw their jitter there
    world = World(2, FAIR)
    world.random_routes, world.kv_bytes, world.rewinds = False, 1 << 20, True
    half = world.num_blocks // 2
    try:
        for span in (*[Span(0, half)] * 2, *[Span(half, world.num_blocks)] * 2):
            world.add(span.start, span.end)
        world.start()
        client = world.client(tuple(range(20)), 60)
        client.begin(next(iter(world.machines)))
        assert world.run_until(lambda: len(client.ids) >= 10, 60.0)
        yield world, client, world.machines[client.route[-1].peer_id]
    finally:
        world.close()
        random.setstate(state)


def meddle(client: Client, process: Process) -> None:
    """Send what is forged with several positions, rounds and epochs."""
    draw = random.Random(0)
    for _ in range(20):
        bring(process, forged(draw, client, client.route[-1]))


def bosses(process: Process) -> list[str]:
    return [session.coordinator for session in process.table.sessions.values()]


def test_a_stranger_opens_nothing_where_its_session_is_known() -> None:
    with stream() as (world, client, machine):
        refused = machine.running.table.counters.refused
        meddle(client, machine.running)
        assert machine.running.table.counters.refused == refused + 20
        assert STRANGER not in bosses(machine.running)
        assert world.run_until(lambda: bool(client.ended), 60.0)
        assert client.ended == "length"


@pytest.mark.parametrize("seconds", [1.0, 14.0])
def test_what_waits_for_a_node_that_stands_still_opens_nothing_when_it_wakes(
    seconds: float,
) -> None:
    """After the longer time the session is an orphan there, which goes before frames are taken."""
    with stream() as (world, client, machine):
        process = machine.running
        process.loop.frozen_until = world.timeline.now + seconds
        world.network.froze(process.links)
        meddle(client, process)
        assert world.run_until(lambda: not process.loop.frozen, seconds + 1.0)
        world.run_for(0.001)
        assert STRANGER not in bosses(process)
        assert process.table.counters.orphaned == (seconds > 10.0)
        assert process.table.counters.gaps == 0
        assert world.run_until(lambda: bool(client.ended), 60.0)
        assert client.ended == "length"
