"""What a node makes of its peers' faults when it chooses routes."""

from __future__ import annotations

from swarmd.node.routes import SUSPECTED_S, Routes
from swarmd.swarm.health import HALF_LIFE_S, Fault
from swarmd.swarm.view import View
from swarmd.testing import FakeClock
from swarmd.toys import toy_model


def routes_at(clock: FakeClock) -> Routes:
    async def look_again() -> None:
        """There is nothing new."""

    return Routes("me", toy_model(), lambda: View((), clock.wall()), look_again, clock)


def test_a_peer_whose_link_broke_is_suspected_until_it_is_heard_of() -> None:
    clock = FakeClock()
    routes = routes_at(clock)
    routes.failed("a")
    routes.failed("b")
    assert routes.suspected() == {"a", "b"}
    assert routes.demoted() == 2
    routes.heard("a")
    routes.heard("c")
    assert routes.suspected() == {"b"}
    clock.advance(SUSPECTED_S)
    assert routes.suspected() == frozenset()


def test_dials_in_vain_to_a_peer_that_is_lost_already_are_no_further_faults() -> None:
    clock = FakeClock()
    routes = routes_at(clock)
    for _ in range(9):
        routes.failed("a")
    assert routes.health.penalty("a", clock.wall()) == Fault.FAILED.value
    routes.heard("a")
    routes.failed("a")
    assert routes.health.penalty("a", clock.wall()) == 2 * Fault.FAILED.value


def test_a_peer_that_was_slow_is_demoted_and_earns_its_place_back() -> None:
    clock = FakeClock()
    routes = routes_at(clock)
    routes.lagging("a")
    assert routes.demoted() == 1
    assert routes.suspected() == frozenset()
    clock.advance(2 * HALF_LIFE_S)
    assert routes.demoted() == 0
