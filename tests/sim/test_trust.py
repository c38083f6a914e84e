"""A node that was lost and is back gets its part of the sessions at once, not after a minute."""

from __future__ import annotations

import random

import pytest

from swarmd.node.routes import Routes
from swarmd.sim.machine import Machine
from swarmd.sim.network import Climate
from swarmd.sim.world import World

FAIR = Climate(delay=(0.001, 0.005), notice=(0.001, 0.01), view_delay=(0.01, 0.1))


def taken_by_who_is_back(seed: int, way: str) -> int:
    """Let one of two holders be lost and come back; return how many sessions of 8 go over it."""
    state = random.getstate()
    random.seed(seed)  # the shells draw their jitter there
    world = World(seed, FAIR)
    try:
        world.random_routes, world.kv_bytes = False, 1 << 20
        half = world.num_blocks // 2
        for span in (*[(0, half)] * 2, *[(half, world.num_blocks)] * 2):
            world.add(*span)
        world.start()
        lost = list(world.machines.values())[3]
        serve(world, lost)  # so that all have links to it
        if way == "killed":
            lost.kill()
        else:
            lost.running.drain()
        assert world.run_until(lambda: not lost.alive, 30.0)
        lost.boot()
        assert world.run_until(lambda: lost.serves, 30.0)
        world.run_for(2.0)
        return serve(world, lost)
    finally:
        world.close()
        random.setstate(state)


def serve(world: World, machine: Machine) -> int:
    """Serve eight sessions at once; return how many go over a machine."""
    clients = [world.client(tuple(range(i, i + 9)), 30) for i in range(8)]
    for client in clients:
        client.begin()
    world.run_until(lambda: all(client.ended for client in clients), 120.0)
    assert [client.ended for client in clients] == ["length"] * 8
    return sum(machine.peer_id in [hop.peer_id for hop in c.route] for c in clients)


@pytest.mark.parametrize("way", ["killed", "drained"])
@pytest.mark.parametrize("seed", range(3))
def test_who_is_back_is_used_at_once(seed: int, way: str) -> None:
    assert taken_by_who_is_back(seed, way) >= 2


def test_without_forgiveness_most_sessions_crowd_on_its_twin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What brings it back is this rule; the test above sees it when it is off."""

    def taken() -> int:
        return sum(taken_by_who_is_back(seed, "killed") for seed in range(4))

    forgiven = taken()
    monkeypatch.setattr(Routes, "look", lambda self: None)
    assert 2 * taken() < forgiven
