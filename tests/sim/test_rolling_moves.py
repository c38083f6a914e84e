"""Every node in turn moves to other blocks under load, as if it were right: nobody notices."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from swarmd.core.peers import Announcement
from swarmd.core.span import Span
from swarmd.pipeline.hop import HopPolicy
from swarmd.sim.client import Client
from swarmd.sim.machine import Machine
from swarmd.sim.network import Climate
from swarmd.sim.world import World
from swarmd.swarm import mover
from swarmd.swarm.rebalance import Move, Reason

FAIR = Climate(
    delay=(0.001, 0.005), compute=(0.01, 0.03), notice=(0.001, 0.01), view_delay=(0.01, 0.1)
)
NODES = 6
CLIENTS = 4
AT_ONCE = 60.0
"""Within so many seconds a node that is to move has done so."""


@pytest.fixture(params=range(2))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Nodes that choose their blocks themselves, half of the model each."""
    state = random.getstate()
    random.seed(request.param)  # the shells draw their jitter there
    made = World(request.param, FAIR)
    made.random_routes, made.kv_bytes, made.rewinds = False, 1 << 20, True
    made.hop_policy = HopPolicy(prefix_unit=4)
    for index in range(NODES):
        machine = made.add_movable()
        machine.room = (made.num_blocks + 1) // 2
        machine.is_roomy = index % 2 == 0
    made.start()
    yield made
    made.close()
    random.setstate(state)


class Load:
    """So many clients at a time: whoever is done is followed by another one."""

    def __init__(self, world: World) -> None:
        self.clients: list[Client] = []
        self.goes_on = True
        self._world = world
        for _ in range(CLIENTS):
            self._another()
        self._look()

    def _another(self) -> None:
        number = len(self.clients)
        client = self._world.client(tuple(range(number, number + 20)), 100 + 10 * (number % 5))
        self.clients.append(client)
        client.begin()

    def _look(self) -> None:
        for _ in range(CLIENTS - sum(not client.ended for client in self.clients)):
            self._another()
        if self.goes_on:
            self._world.timeline.after(0.1, self._look)


def other_place(world: World, machine: Machine) -> Span:
    assert machine.span is not None
    last = Span(world.num_blocks - machine.room, world.num_blocks)
    return last if machine.span.start < last.start / 2 else Span(0, machine.room)


def may_go(world: World, machine: Machine) -> bool:
    """Whether others serve all of its blocks."""
    others = [m.span for m in world.machines.values() if m is not machine and m.span]
    assert machine.span is not None
    blocks = range(machine.span.start, machine.span.end)
    return all(any(block in span for span in others) for block in blocks)


def test_every_node_moves_in_turn_and_no_request_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Span] = {}

    def as_told(view: object, model: str, own: Announcement, *_: object, **__: object) -> object:
        span = wanted.get(own.peer_id)
        return Move(span, Reason.THIN) if span else None

    monkeypatch.setattr(mover, "better_place", as_told)
    monkeypatch.setattr(mover, "PATIENCE_S", dict.fromkeys(Reason, 0.0))
    monkeypatch.setattr(mover, "JITTER_S", dict.fromkeys(Reason, 0.0))
    load = Load(world)
    assert world.run_until(lambda: all(len(client.ids) >= 10 for client in load.clients), 60.0)
    waiting = list(world.machines.values())
    while waiting:
        free = [one for one in waiting if may_go(world, one)]
        machine = max(free, key=lambda one: len(one.running.table.sessions))
        waiting.remove(machine)
        target = wanted[machine.peer_id] = other_place(world, machine)
        stats, table = machine.running.parts.report.node, machine.running.table
        assert world.run_until(lambda: machine.running.table is not table, AT_ONCE)  # noqa: B023
        assert world.run_until(lambda: machine.serves, AT_ONCE)  # noqa: B023
        assert machine.span == target
        assert (stats.moves, stats.moves_given_up) == (1, 0)
        del wanted[machine.peer_id]
        world.run_for(2.0)
    load.goes_on = False
    assert world.run_until(lambda: all(client.ended for client in load.clients), 60.0)
    assert [client.ended for client in load.clients] == ["length"] * len(load.clients)
    assert [client.ids for client in load.clients] == [client.expected for client in load.clients]
    assert not sum(client.resumes for client in load.clients)
    stats_of_all = [process.coordinator.stats for process in world.loaded()]
    assert not sum(stats.repairs for stats in stats_of_all)
    assert sum(stats.handoffs for stats in stats_of_all) >= NODES // 2, (
        "they had sessions to hand over"
    )
    assert all(machine.boots == 1 for machine in world.machines.values())
    world.check_rest()
