"""What a node makes of its peers' faults when it chooses routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from swarmd.core.errors import CoverageError
from swarmd.core.peers import Announcement, NodeState
from swarmd.core.route import Hop
from swarmd.core.span import Span
from swarmd.node.routes import BACK_S, FALLING_SILENT_S, SUSPECTED_S, Asked, Routes
from swarmd.pipeline.experience import Speed
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


def test_a_hole_goes_to_a_peer_of_the_precision_that_computed_it() -> None:
    clock = FakeClock()
    model = toy_model(4)
    half, full = (
        _peer(clock, name, dtype) for name, dtype in (("h", "bfloat16"), ("f", "float32"))
    )
    seen = View((half, full), clock.wall())

    async def look_again() -> None:
        """There is nothing new."""

    routes = Routes("me", model, lambda: seen, look_again, clock)
    kept = (Hop("k", Span(2, 4), precision="float32"),)
    for dtype, name in (("bfloat16", "h"), ("float32", "f")):
        asked = Asked(8, precisions={Span(0, 2): dtype})
        assert [h.peer_id for h in routes.find((Span(0, 2),), frozenset(), kept, asked)] == [name]
    alone = Asked(8, precisions={Span(0, 2): "float16"})
    assert routes.find((Span(0, 2),), frozenset(), kept, alone), "another one is better than none"
    for keep in (kept, ()):
        for dtype, name in (("bfloat16", "h"), ("float32", "f")):
            asked = Asked(8, precisions={Span(0, 2): dtype}, strict=True)
            assert [h.peer_id for h in routes.find((Span(0, 2),), frozenset(), keep, asked)] == [
                name
            ]
        with pytest.raises(CoverageError):
            routes.find((Span(0, 2),), frozenset(), keep, replace(alone, strict=True))


def _peer(clock: FakeClock, peer_id: str, dtype: str) -> Announcement:
    now = clock.wall()
    return Announcement(
        peer_id=peer_id,
        address=f"{peer_id}:1",
        model=toy_model(4),
        span=Span(0, 2),
        state=NodeState.SERVING,
        issued_at=now,
        expires_at=now + 30,
        precision=dtype,
        kv_total_bytes=1 << 20,
        kv_free_bytes=1 << 20,
        kv_bytes_per_token=2,
    )


def test_prompts_do_not_meet_at_a_peer_that_starves() -> None:
    clock = FakeClock()
    peers = [replace(_peer(clock, name, "float32"), span=Span(0, 4)) for name in "ab"]
    for late in "ab":
        now = [replace(peer, starves=peer.peer_id == late) for peer in peers]
        homes = {_homes(clock, now).home(bytes([key])) for key in range(20)}
        assert {home.peer_id for home in homes if home} == {"b" if late == "a" else "a"}
        assert _homes(clock, now).has_well_first_hop
    everywhere = _homes(clock, [replace(peer, starves=True) for peer in peers])
    assert everywhere.home(b"k") is None
    assert not everywhere.has_well_first_hop
    assert everywhere.first_hop().peer_id in "ab"


def test_a_starving_hop_is_left_for_those_only_that_are_quicker() -> None:
    clock = FakeClock()
    slow = replace(_peer(clock, "s", "float32"), span=Span(0, 4), step_ms=8.0, starves=True)
    slow = replace(slow, lag_ms=100.0)
    hop = Hop("s", Span(0, 4))

    def better(*others: Announcement) -> bool:
        return _homes(clock, [slow, *others]).has_better(hop)

    def other(name: str, *blocks: int, **what: Any) -> Announcement:
        peer = _peer(clock, name, "float32")
        return replace(peer, span=Span(*blocks), **({"step_ms": 20.0} | what))

    assert not better()
    assert better(other("a", 0, 4))
    assert better(other("a", 0, 2), other("b", 2, 4))
    assert not better(other("a", 0, 2))
    assert not better(other("a", 0, 4, starves=True))
    assert not better(other("a", 0, 4, step_ms=2000.0)), "that is slower yet"
    assert not _homes(clock, [other("a", 0, 4)]).has_better(hop), "it is not there any more"
    known = _homes(clock, [slow, other("a", 0, 4)])
    assert known.starving() == {"s"}
    known.lagging("a")
    assert not known.has_better(hop)


def _homes(clock: FakeClock, peers: Sequence[Announcement]) -> Routes:
    async def look_again() -> None:
        """There is nothing new."""

    seen = View(tuple(peers), clock.wall())
    return Routes("me", toy_model(4), lambda: seen, look_again, clock)


def test_a_peer_that_was_slow_is_demoted_and_earns_its_place_back() -> None:
    clock = FakeClock()
    routes = routes_at(clock)
    routes.lagging("a")
    assert routes.demoted() == 1
    assert routes.suspected() == frozenset()
    clock.advance(2 * HALF_LIFE_S)
    assert routes.demoted() == 0


def test_a_process_that_was_started_anew_has_not_failed() -> None:
    clock = FakeClock()
    seen = [_peer(clock, "a", "float32"), _peer(clock, "b", "float32")]
    routes = _routes_over(clock, seen)
    everything = (Span(0, 4),)

    def taken() -> set[str]:
        """Who gets sessions that come one after the other, none of which has ended."""
        spent = [routes.find(everything, frozenset(), (), Asked(8)) for _ in range(4)]
        for route in spent:
            routes.ended(route, 8)
        return {route[0].peer_id for route in spent}

    seen[:] = [replace(p, pid=1, span=Span(0, 4)) for p in seen]
    assert taken() == {"a", "b"}
    routes.failed("a")
    assert taken() == {"b"}
    seen[0] = replace(seen[0], pid=2, state=NodeState.LOADING)
    routes.look()
    assert routes.demoted() == 1, "it does not work yet"
    routes.failed("a")  # dialled in vain, as it loads
    seen[0] = replace(seen[0], state=NodeState.SERVING)
    routes.look()
    assert routes.demoted() == 0
    assert routes.suspected() == frozenset()
    assert taken() == {"a", "b"}
    # It has done that itself, and is forgiven once a minute: some end again and again.
    routes.failed("a")
    routes.look()
    assert routes.demoted() == 1
    seen[0] = replace(seen[0], pid=3)
    routes.look()
    assert routes.demoted() == 1


def test_in_a_container_all_processes_have_one_id() -> None:
    clock = FakeClock()
    seen = [_peer(clock, "a", "float32")]
    routes = _routes_over(clock, seen)
    routes.failed("a")
    for state, demoted in ((NodeState.LOADING, 1), (NodeState.SERVING, 0)):
        seen[0] = replace(seen[0], state=state)
        routes.look()
        assert routes.demoted() == demoted


def test_a_peer_that_stood_still_is_trusted_when_it_speaks_again() -> None:
    clock = FakeClock()
    seen = [replace(_peer(clock, "a", "float32"), span=Span(0, 4))]
    routes = _routes_over(clock, seen)

    def announces() -> None:
        seen[0] = replace(seen[0], issued_at=clock.wall())

    routes.failed("a")
    clock.advance(BACK_S / 2)
    announces()  # that was on its way as it stood still
    routes.look()
    clock.advance(BACK_S)
    routes.look()
    assert routes.demoted() == 1
    announces()
    assert routes.first_hop().peer_id == "a"
    assert routes.demoted() == 0
    assert routes.suspected() == frozenset()
    # Once a minute: whose links break again and again is avoided, though it announces itself.
    routes.failed("a")
    clock.advance(2 * BACK_S)
    routes.look()
    announces()
    routes.look()
    assert routes.demoted() == 1


def test_a_machine_that_is_slow_is_so_after_a_restart() -> None:
    clock = FakeClock()
    seen = [_peer(clock, "a", "float32")]
    routes = _routes_over(clock, seen)
    routes.lagging("a")
    clock.advance(FALLING_SILENT_S)
    lagged = routes.health.penalty("a", clock.wall())
    routes.failed("a")
    seen[0] = replace(seen[0], pid=2)
    routes.look()
    assert routes.health.penalty("a", clock.wall()) == pytest.approx(lagged)


def test_who_held_sessions_up_since_it_fell_silent_is_not_slow() -> None:
    clock = FakeClock()
    seen = [replace(_peer(clock, "a", "float32"), span=Span(0, 4))]
    routes = _routes_over(clock, seen)
    routes.lagging("a")
    clock.advance(FALLING_SILENT_S / 2)
    routes.failed("a")
    assert routes.health.penalty("a", clock.wall()) > Fault.LAGGED.value
    clock.advance(2 * BACK_S)
    routes.look()
    seen[0] = replace(seen[0], issued_at=clock.wall())
    assert routes.first_hop().peer_id == "a"
    assert routes.demoted() == 0


def test_hops_that_work_again_are_trusted_sooner() -> None:
    clock = FakeClock()
    routes = routes_at(clock)
    routes.failed("a")
    routes.lagging("b")
    routes.worked((Hop("a", Span(0, 2)), Hop("b", Span(2, 4))))
    assert routes.health.penalty("a", clock.wall()) == Fault.FAILED.value / 2
    assert routes.health.penalty("b", clock.wall()) == Fault.LAGGED.value


def _routes_over(clock: FakeClock, seen: list[Announcement]) -> Routes:
    async def look_again() -> None:
        """There is nothing new."""

    return Routes("me", toy_model(4), lambda: View(seen, clock.wall()), look_again, clock)


def test_how_quick_a_stage_is_its_peer_says() -> None:
    clock = FakeClock()
    told = replace(_peer(clock, "told", "float32"), step_ms=40.0, prefill_ms=2.0)
    new = _peer(clock, "new", "float32")
    view = View((told, new), clock.wall())

    async def look_again() -> None:
        """There is nothing new."""

    routes = Routes("me", toy_model(4), lambda: view, look_again, clock)
    assert routes.speed(told.peer_id) == Speed(position_s=0.002, token_s=0.04)
    assert routes.speed(new.peer_id) == routes.speed("stranger") == Speed()
