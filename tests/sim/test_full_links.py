"""Whole nodes whose links are full: what they replay and copy waits for that, and is not lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from swarmd.pipeline.hop import HopPolicy
from swarmd.sim.client import Client
from swarmd.sim.network import Climate
from swarmd.sim.node import Process
from swarmd.sim.world import World

FAIR = Climate(delay=(0.001, 0.005), notice=(0.001, 0.01), view_delay=(0.01, 0.1))


@contextmanager
def stream() -> Iterator[tuple[World, Client]]:
    """A client in the middle of its stream, over two hops that both could be replaced."""
    state = random.getstate()
    random.seed(2)  # the shells draw their jitter there
    world = World(2, FAIR)
    world.random_routes, world.kv_bytes = False, 1 << 20
    world.rewinds, world.hop_policy = True, HopPolicy(prefix_unit=0)
    half = world.num_blocks // 2
    try:
        for start, end in ((0, half), (half, world.num_blocks)) * 2:
            world.add(start, end)
        world.start()
        client = world.client(tuple(range(20)), 100)
        client.begin(next(iter(world.machines)))
        assert world.run_until(lambda: len(client.ids) >= 10, 60.0)
        yield world, client
    finally:
        world.close()
        random.setstate(state)


def fill_links(process: Process, nbytes: int) -> None:
    process.links.pending = lambda peer_id: nbytes  # type: ignore[method-assign]


def test_a_replay_waits_for_its_link() -> None:
    with stream() as (world, client):
        first, last = (world.machines[hop.peer_id] for hop in client.route)
        fill_links(first.running, 1 << 40)
        last.kill()
        before = len(client.ids)
        backlogs = first.running.table.backlogs
        assert world.run_until(lambda: backlogs.due is not None, 10.0)
        world.run_for(1.0)
        assert len(client.ids) <= before + 2
        assert client.route[-1].peer_id != last.peer_id
        fill_links(first.running, 0)
        assert world.run_until(lambda: bool(client.ended), 60.0)
        assert client.ended == "length"
        assert first.running.table.counters.recomputed_positions <= 2
