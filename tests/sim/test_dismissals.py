"""Several nodes are told to leave at one moment: what only they hold stays, and streams go on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from swarmd.node import dismissal
from swarmd.node.dismissal import SETTLE_S
from swarmd.node.lifecycle import State
from swarmd.node.presence import Presence
from swarmd.sim.client import Client
from swarmd.sim.machine import Machine
from swarmd.sim.network import Climate
from swarmd.sim.node import Process
from swarmd.sim.world import World
from swarmd.v1 import peer_pb2 as pb

FAIR = Climate(delay=(0.001, 0.005), notice=(0.001, 0.01), view_delay=(0.01, SETTLE_S / 2))


@pytest.fixture(params=range(4))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A swarm whose first blocks two hold, and its last ones three."""
    state = random.getstate()
    random.seed(request.param)  # the shells draw their jitter there
    made = World(request.param, FAIR)
    made.random_routes, made.kv_bytes = False, 1 << 20
    half = made.num_blocks // 2
    for span in (*[(0, half)] * 2, *[(half, made.num_blocks)] * 3):
        made.add(*span)
    made.start()
    yield made
    made.close()
    random.setstate(state)


def holders(world: World, block: int) -> list[Machine]:
    return [m for m in world.machines.values() if m.span and block in m.span]


def streams(world: World) -> list[Client]:
    clients = [world.client(tuple(range(i, i + 9)), 200) for i in range(4)]
    for client in clients:
        client.begin()
    assert world.run_until(lambda: all(len(client.ids) >= 10 for client in clients), 60.0)
    return clients


def told_at_once(world: World, *machines: Machine, within: float = 0.0) -> list[Machine]:
    """Tell them to leave within so many seconds; return those that stay."""
    told, before = world.timeline.now, answers(world)
    for machine in machines:
        world.timeline.at(told + world.draw((0.0, within)), machine.running.dismiss)
    assert world.run_until(lambda: answers(world) == before + len(machines), 30.0)
    return [machine for machine in machines if machine.alive and machine.running.life.serves]


def answers(world: World) -> int:
    return world.history["dismissal_accepted"] + world.history["dismissal_refused"]


@pytest.mark.parametrize("within", [0.0, 0.5, 1.5, 4.0])
def test_of_the_last_two_one_stays_and_streams_do_not_notice(world: World, within: float) -> None:
    clients = streams(world)
    pair = holders(world, 0)
    assert len(told_at_once(world, *pair, within=within)) == 1
    newcomer = world.client((1, 2, 3), 20)
    newcomer.begin()
    clients.append(newcomer)
    assert world.run_until(lambda: all(client.ended for client in clients), 120.0)
    assert [client.ended for client in clients] == ["length"] * 5
    assert [client.ids for client in clients] == [client.expected for client in clients]
    repairs = sum(p.coordinator.stats.repairs for p in world.loaded())
    assert not repairs
    assert [machine.alive for machine in pair].count(True) == 1
    # It may be told again once somebody else holds its blocks.
    stays = next(machine for machine in pair if machine.alive)
    gone = next(machine for machine in pair if not machine.alive)
    gone.boot()
    assert world.run_until(lambda: gone.serves, 30.0)
    world.run_for(2.0)
    assert not told_at_once(world, stays)


def test_of_three_one_stays_and_of_other_blocks_as_well(world: World) -> None:
    machines = list(world.machines.values())
    assert len(told_at_once(world, *machines, within=0.2)) == 2
    world.run_for(5.0)
    alive = [machine for machine in machines if machine.alive]
    assert len(alive) == 2
    assert {block for m in alive for block in range(m.span.start, m.span.end)} == set(
        range(world.num_blocks)
    )
    assert not any(m.running.presence.own.leaves for m in alive)


def test_who_is_told_twice_at_once_drains_and_is_not_stopped(world: World) -> None:
    clients = streams(world)
    machine = holders(world, 0)[0]
    machine.running.dismiss()
    told_at_once(world, machine)
    assert world.run_until(lambda: all(client.ended for client in clients), 120.0)
    assert [client.ids for client in clients] == [client.expected for client in clients]
    assert not sum(p.coordinator.stats.repairs for p in world.loaded())


def test_those_who_ask_together_are_refused_together(world: World) -> None:
    """Not one after the other, each after as long as it takes to be sure."""
    twin, last = holders(world, 0)
    twin.kill(silently=True)  # its announcement lives on, and nobody answers there
    began = world.timeline.now
    assert set(told_at_once(world, *[last] * 5)) == {last}
    assert world.history["dismissal_refused"] == 5
    assert world.timeline.now - began < 3 * SETTLE_S


def test_a_decision_that_takes_too_long_is_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dismissal, "DECIDE_S", SETTLE_S / 2)
    assert len(told_at_once(world, holders(world, 0)[0])) == 1


def test_a_holder_that_died_unnoticed_does_not_count(world: World) -> None:
    one, other = holders(world, 0)
    world.run_for(3.0)
    other.kill()
    assert one.running.presence.view.peer(other.peer_id), "its announcement outlives it"
    assert told_at_once(world, one) == [one]


def test_nor_does_one_that_is_only_being_started_again(world: World) -> None:
    one, other = holders(world, 0)
    world.run_for(3.0)
    other.kill()
    world.loading = (20.0, 20.0)
    other.boot()
    other.running.directory.away_until = world.timeline.now + 10.0  # it is slow to say so
    world.run_for(0.5)
    seen = one.running.presence.view.peer(other.peer_id)
    assert seen is not None
    assert seen.pid < other.boots, "the announcement of the process before outlives it"
    assert told_at_once(world, one) == [one]


def newcomer_as_one_is_told(world: World) -> tuple[Machine, Machine]:
    """Of three holders one has died unheard of, and one comes back as one is told to leave."""
    one, other, newcomer = holders(world, world.num_blocks - 1)
    world.run_for(3.0)
    newcomer.kill()
    world.loading = (2.5, 2.5)
    newcomer.boot()
    world.run_for(2.45)
    view = one.running.presence
    assert newcomer.peer_id not in serving_ids(view)
    other.kill()
    assert other.peer_id in serving_ids(view), "its announcement outlives it"
    one.running.dismiss()
    assert world.run_until(lambda: newcomer.peer_id in serving_ids(view), SETTLE_S - 0.1)
    return one, newcomer


def serving_ids(presence: Presence) -> set[str]:
    own = presence.own
    assert own is not None
    return {peer.peer_id for peer in presence.view.serving(own.model.digest)}


def test_nor_does_one_that_came_while_it_was_decided_and_died_again(world: World) -> None:
    one, newcomer = newcomer_as_one_is_told(world)
    newcomer.kill()
    assert newcomer.peer_id in serving_ids(one.running.presence)
    assert world.run_until(lambda: answers(world) == 1, 30.0)
    assert world.history["dismissal_refused"] == 1
    assert one.running.life.serves


def test_one_that_came_while_it_was_decided_counts(world: World) -> None:
    _, newcomer = newcomer_as_one_is_told(world)
    assert world.run_until(lambda: answers(world) == 1, 30.0)
    assert world.history["dismissal_accepted"] == 1
    assert newcomer.running.life.serves


def test_nobody_knows_of_a_death_after_the_last_sign_of_life(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, newcomer = newcomer_as_one_is_told(world)
    doors = newcomer.running.doors
    introduce = doors.introduce

    def answer_and_die(to: str, settle: Callable[[pb.IntroduceReply], None]) -> None:
        introduce(to, settle)
        world.timeline.after(0.0, newcomer.kill)

    monkeypatch.setattr(doors, "introduce", answer_and_die)
    assert world.run_until(lambda: answers(world) == 1, 30.0)
    assert world.history["dismissal_accepted"] == 1
    assert not newcomer.alive
    world.run_for(0.1)  # what must hold is missed by then


def test_nor_where_one_that_drains_already_is_told_to_leave_now(world: World) -> None:
    streams(world)
    one, other = holders(world, 0)
    other.kill()
    one.running.drain()
    told_at_once(world, one, one)
    assert world.history["dismissal_refused"] == 2
    assert one.alive
    assert one.running.life.lifecycle.state is State.DRAINING


def test_a_signal_and_a_command_at_one_moment_take_no_two(world: World) -> None:
    """The one is about to go, and has not heard yet of the other, which counts on it."""
    streams(world)
    low, high = sorted(holders(world, 0), key=lambda machine: machine.peer_id)
    low.running.dismiss()
    world.run_for(SETTLE_S - 0.005)
    high.running.drain()
    high.running.dismiss()
    assert world.run_until(lambda: answers(world) == 2, 30.0)
    assert world.history["dismissal_refused"] == 1
    assert high.running.life.lifecycle.state is State.DRAINING


def test_a_holder_counts_before_it_is_open_to_clients(world: World) -> None:
    one, other = holders(world, 0)
    world.run_for(3.0)
    other.running.open = False  # it has said that it serves, and looks who else is here
    assert not told_at_once(world, one)
    world.run_for(0.1)  # what must hold is missed by then


def test_of_the_last_two_that_are_advised_to_leave_one_follows(world: World) -> None:
    pair = [machine.running for machine in holders(world, 0)]
    answers: list[bool] = []

    async def advise(process: Process) -> None:
        assert process.dismissal is not None
        answers.append(await process.dismissal.may_go())
        if answers[-1]:
            process.life.drain()

    for process in pair:
        process.loop.do(partial(process.loop.spawn, advise(process)))
    assert world.run_until(lambda: len(answers) == 2, 30.0)
    assert sorted(answers) == [False, True]
    assert [process.life.serves for process in pair].count(True) == 1
