"""Everything is killed at once and started again: no session is opened more often than it must be.

An attempt is an epoch that is begun: the opens that a coordinator sends to the hops of one route.
It is what `coordinator_open_attempts_total` counts. A session that ran when all was lost needs one.
"""

from __future__ import annotations

import random

import pytest

from swarmd.node.knocks import Answer, Knocks
from swarmd.sim.client import Client
from swarmd.sim.network import Climate
from swarmd.sim.world import World

BUDGET = 1.2
"""Attempts per request over a restart of everything."""
CLIENTS = 8
ROUGH = Climate(delay=(0.0005, 0.02), notice=(0.001, 0.08), duplicates=0.1, view_delay=(0.01, 4.0))
"""Announcements of those that were killed are still heard of, and those of today late."""


def swarm_of_six(seed: int, loading: tuple[float, float]) -> World:
    world = World(seed, ROUGH)
    world.random_routes, world.kv_bytes, world.loading = False, 1 << 20, loading
    third = world.num_blocks // 3
    for start, end in ((0, third), (third, 2 * third), (2 * third, world.num_blocks)):
        for _ in range(2):
            world.add(start, end)
    world.start()
    return world


def at_work(world: World) -> list[Client]:
    """Clients in the middle of what they have asked for."""
    clients = [world.client(tuple(range(i, i + 20)), 200) for i in range(CLIENTS)]
    for client in clients:
        client.begin()
    assert world.run_until(lambda: all(len(client.ids) >= 10 for client in clients), 120.0)
    assert not any(client.ended for client in clients)
    return clients


def restarted(seed: int, loading: tuple[float, float], lost: int = 0) -> float:
    """Kill all, start all but `lost` second holders; return attempts per request from then on."""
    state = random.getstate()
    random.seed(seed)  # the shells draw their jitter there
    world = swarm_of_six(seed, loading)
    try:
        clients = at_work(world)
        before, machines = world.invariants.opens, list(world.machines.values())
        for machine in machines:
            machine.kill()
        for machine in machines[1 : 2 * lost : 2]:
            machine.lost = True
        for machine in machines:
            machine.boot()
        newcomers = [world.client(tuple(range(i, i + 9)), 20) for i in range(CLIENTS)]
        for client in newcomers:
            world.timeline.after(world.draw((0.0, 2 * loading[1])), client.begin)
        world.run_until(lambda: all(client.ended for client in (*clients, *newcomers)), 120.0)
        assert [client.ended for client in clients] == ["length"] * CLIENTS
        served = [client for client in newcomers if client.begun]
        return (world.invariants.opens - before) / len([*clients, *served])
    finally:
        world.close()
        random.setstate(state)


@pytest.mark.parametrize("seed", [2, 4, 7])
def test_a_restart_of_everything_stays_within_the_budget(seed: int) -> None:
    assert restarted(seed, (0.2, 2.0)) <= BUDGET


def test_nor_do_nodes_that_start_one_after_the_other_or_never_cost_more() -> None:
    assert restarted(2, (0.2, 8.0)) <= BUDGET
    assert restarted(4, (0.2, 2.0), lost=3) <= BUDGET


def test_without_links_before_opens_the_budget_is_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds the budget is this rule; the test above sees it when it is off."""

    def blind(self: Knocks, peers: object, seconds: float, answer: Answer, *rest: object) -> None:
        answer(frozenset())

    monkeypatch.setattr(Knocks, "ask", blind)
    assert restarted(2, (0.2, 2.0)) > BUDGET
