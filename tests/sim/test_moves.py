"""Whole nodes move to where they are missing, and sessions are kept and forked, in fair weather."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, cast

import pytest

from swarmd.core.peers import Announcement
from swarmd.core.span import Span
from swarmd.node.lifecycle import State
from swarmd.node.service import Service
from swarmd.pipeline.events import Computed
from swarmd.pipeline.hop import HopPolicy
from swarmd.sim.client import Client
from swarmd.sim.executor import SimExecutor
from swarmd.sim.network import Climate
from swarmd.sim.node import DRAIN_TIMEOUT_S
from swarmd.sim.world import World
from swarmd.swarm import mover
from swarmd.swarm.rebalance import Move, Reason, better_place
from swarmd.swarm.view import View

FAIR = Climate(delay=(0.001, 0.005), notice=(0.001, 0.01), view_delay=(0.01, 0.1))


@pytest.fixture(params=range(4))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    state = random.getstate()
    random.seed(request.param)  # the shells draw their jitter there
    made = World(request.param, FAIR)
    made.random_routes, made.kv_bytes, made.rewinds = False, 1 << 20, True
    made.hop_policy = HopPolicy(prefix_unit=4, keep_bytes=1 << 19)
    half = made.num_blocks // 2
    made.add(0, half)
    made.add(half, made.num_blocks)
    yield made
    made.close()
    random.setstate(state)


def served(world: World, *clients: Client) -> None:
    world.run_until(lambda: all(client.ended for client in clients), 120.0)
    for client in clients:
        assert client.ended == "length"
        assert client.ids == client.expected


def test_a_redundant_node_steps_into_a_gap_and_the_stream_goes_on(world: World) -> None:
    spare = world.add_movable()
    spare.room = world.num_blocks - world.num_blocks // 2
    world.start()
    assert spare.span is not None
    fixed = [machine for machine in world.machines.values() if not machine.movable]
    client = world.client(tuple(range(20)), 200)
    client.begin()
    assert world.run_until(lambda: len(client.ids) >= 10, 60.0)
    lost = next(m for m in fixed if m.span and not spare.span.covers(m.span))
    lost.kill()
    served(world, client)
    assert world.history["moved_away"] == 1
    assert lost.span is not None
    assert spare.span.covers(lost.span)


def test_a_node_that_moves_for_speed_does_not_wait_for_sessions_that_wait_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks where it goes are lost as it drains: as it plans to go, others do not."""
    spare = world.add_movable()
    spare.room = world.num_blocks - world.num_blocks // 2
    world.start()
    fixed = [machine for machine in world.machines.values() if not machine.movable]
    twin = next(m for m in fixed if m.span and spare.span and spare.span.covers(m.span))
    lost = next(m for m in fixed if m is not twin)
    twin.kill()
    for machine in world.machines.values():
        machine.slowness = 10.0
    client = world.client(tuple(range(20)), 200)
    client.begin()
    assert world.run_until(lambda: len(client.ids) >= 10, 60.0)
    assert any(hop.peer_id == spare.peer_id for hop in client.route)
    twin.boot()
    assert world.run_until(lambda: twin.serves, 10.0)
    place = Span(0, spare.room) if lost.span == fixed[0].span else fixed[1].span

    def faster_there(view: View, model: str, own: Announcement, *room: int, **how: Any) -> Any:
        better = better_place(view, model, own, *room, **how)
        return better or (Move(place, Reason.THIN) if own.span != place else None)

    monkeypatch.setattr(mover, "better_place", faster_there)
    monkeypatch.setattr(mover, "PATIENCE_S", dict.fromkeys(Reason, 0.0))
    monkeypatch.setattr(mover, "JITTER_S", dict.fromkeys(Reason, 0.0))
    moving = spare.running.life.lifecycle
    assert world.run_until(lambda: moving.state is State.MOVING, 10.0)
    assert not client.ended
    assert spare.running.moves is not None
    assert spare.running.moves.reason is Reason.THIN
    lost.kill()
    assert world.run_until(lambda: spare.span == place and spare.serves, DRAIN_TIMEOUT_S / 2)
    served(world, client)


def test_an_idle_last_holder_that_is_to_leave_stays_until_a_redundant_node_has_stepped_in(
    world: World,
) -> None:
    spare = world.add_movable()
    spare.room = world.num_blocks - world.num_blocks // 2
    world.start()
    assert spare.span is not None
    fixed = [machine for machine in world.machines.values() if not machine.movable]
    leaves = next(m for m in fixed if m.span and not spare.span.covers(m.span))
    told = world.timeline.now
    leaves.running.drain()
    assert world.run_until(lambda: not leaves.alive, 60.0)
    assert leaves.span is not None
    assert spare.serves
    assert spare.span.covers(leaves.span)
    assert world.timeline.now - told < DRAIN_TIMEOUT_S / 2
    world.run_for(1.0)  # everybody hears of it
    client = world.client(tuple(range(20)), 20)
    client.begin()
    served(world, client)


def test_forks_of_a_kept_session_begin_where_it_ended(world: World) -> None:
    world.start()
    client = world.client(tuple(range(20)), 20)
    client.keep_s = 30.0
    client.begin()
    served(world, client)
    assert client.kept is not None
    forks = [world.client((*client.kept.ids, 7, n), 10) for n in range(2)]
    for fork in forks:
        fork.past = client.kept
        fork.begin()
    served(world, *forks)
    continued = [process.table.counters.continued for process in world.processes()]
    assert continued == [2, 2]
    world.run_for(35.0)
    assert not any(len(process.table.leases) for process in world.processes())


def test_what_an_old_stage_computes_late_is_not_taken_for_the_new_ones(world: World) -> None:
    """Tickets begin again with a new stage, so nothing else would tell them apart."""
    world.start()
    process = next(iter(world.machines.values())).running
    service, taken = process.service, []
    assert service is not None
    old_host, old_executor = service.host, cast(SimExecutor, service.executor)

    async def change() -> None:
        await Service.unload(service)
        service.change_stage(service.stage)

    process.loop.do(lambda: process.loop.spawn(change()))
    assert world.run_until(lambda: service.host is not old_host, 10.0)
    for host in (old_host, service.host):
        host.handle = lambda *events: taken.extend(events)  # type: ignore[method-assign]
    process.loop.do(lambda: old_executor._deliver([Computed(bytes(16), 1, None)]))
    world.run_for(0.01)
    assert taken == []
