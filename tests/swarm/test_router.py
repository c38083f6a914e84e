"""Routes are valid, the cheapest there are, and say what is missing when there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peers import NOW, peer, peer_id

from swarmd.core.errors import CoverageError, KVExhausted, PromptTooLong, UnknownModel
from swarmd.core.peers import Announcement, NodeState
from swarmd.core.route import Hop, Route, check_route
from swarmd.core.span import Span
from swarmd.swarm.health import Fault, Health
from swarmd.swarm.paths import Offer, Path, Search, cheapest_path, cheapest_route, path_cost
from swarmd.swarm.router import choose_route, cover
from swarmd.swarm.sweep import Limit, swept_path
from swarmd.swarm.terms import RouteRequest
from swarmd.swarm.view import View

ANY = RouteRequest()


def route_over(
    *peers: Announcement,
    request: RouteRequest = ANY,
    health: Health | None = None,
    origin: int = 0,
) -> Route:
    view = View(peers, NOW)
    return choose_route(view, "demo", health or Health(), request, peer_id(origin))


def text(route: Sequence[Hop]) -> str:
    """Read a route as `1@0:4 2@4:8`."""
    return " ".join(f"{int(hop.peer_id, 16)}@{hop.blocks}" for hop in route)


def test_a_route_runs_through_all_blocks() -> None:
    route = route_over(peer(1, 0, 3), peer(2, 3, 6, precision="float32"), peer(3, 6, 8))
    assert text(route) == "1@0:3 2@3:6 3@6:8"
    check_route(route, 8)
    assert route[1].address == "10.0.0.2:7420"
    assert route[1].pid == 2
    assert route[1].precision == "float32"


def test_overlapping_spans_are_entered_in_the_middle() -> None:
    assert text(route_over(peer(1, 0, 5), peer(2, 3, 8, step_ms=50.0))) == "1@0:5 2@5:8"
    assert text(route_over(peer(1, 0, 5, step_ms=50.0), peer(2, 3, 8))) == "1@0:3 2@3:8"


def test_fewer_hops_are_preferred() -> None:
    assert text(route_over(peer(1, 0, 4), peer(2, 4, 8), peer(3, 0, 8))) == "3@0:8"


def test_a_busy_peer_is_avoided() -> None:
    assert text(route_over(peer(1, 0, 8, queue_depth=4), peer(2, 0, 8))) == "2@0:8"
    assert text(route_over(peer(1, 0, 8, sessions=4), peer(2, 0, 8))) == "2@0:8"


def test_a_peer_that_starves_is_used_only_where_nobody_else_can() -> None:
    starves = peer(1, 0, 8, starves=True)
    assert text(route_over(starves, peer(2, 0, 8, step_ms=400.0))) == "2@0:8"
    assert text(route_over(starves, peer(2, 0, 4))) == "1@0:8"


def test_sessions_weigh_more_where_they_are_not_batched() -> None:
    alone = peer(1, 0, 8, sessions=2, ragged=False)
    assert text(route_over(alone, peer(2, 0, 8, sessions=4))) == "2@0:8"


def test_a_slow_link_is_avoided() -> None:
    near, far = (0.0, 0.0, 0.1), (80.0, 0.0, 0.1)
    peers = (
        peer(1, 0, 4, coordinate=near),
        peer(2, 4, 8, coordinate=far),
        peer(3, 4, 8, coordinate=near, step_ms=20.0),
    )
    assert text(route_over(*peers, origin=1)) == "1@0:4 3@4:8"


def test_the_coordinator_is_the_first_hop_when_all_else_is_equal() -> None:
    peers = [peer(n, 0, 4) for n in (1, 2, 3)] + [peer(n, 4, 8) for n in (4, 5)]
    assert text(route_over(*peers, origin=2)) == "2@0:4 4@4:8"


def test_a_peer_in_disgrace_is_used_only_when_nobody_else_can() -> None:
    health = Health()
    health.report(peer_id(1), Fault.FAILED, NOW)
    assert text(route_over(peer(1, 0, 8), peer(2, 0, 8), health=health)) == "2@0:8"
    assert text(route_over(peer(1, 0, 8), health=health)) == "1@0:8"


@pytest.mark.parametrize("state", [NodeState.LOADING, NodeState.DRAINING])
def test_only_serving_peers_are_hops(state: NodeState) -> None:
    with pytest.raises(CoverageError):
        route_over(peer(1, 0, 8, state=state))


def test_an_excluded_peer_is_not_a_hop() -> None:
    request = RouteRequest(exclude=frozenset({peer_id(1)}))
    assert text(route_over(peer(1, 0, 8), peer(2, 0, 8, step_ms=99.0), request=request)) == "2@0:8"


def test_survivors_of_a_session_are_kept_whatever_they_cost() -> None:
    request = RouteRequest(prefer=frozenset({peer_id(1)}))
    peers = (peer(1, 0, 4, step_ms=900.0), peer(2, 0, 8), peer(3, 4, 8))
    assert text(route_over(*peers, request=request)).startswith("1@0:4 ")


def test_missing_blocks_are_named() -> None:
    with pytest.raises(CoverageError, match=r"blocks 2:3, 6:8 of demo.*--blocks 2:3") as error:
        route_over(peer(1, 0, 2), peer(2, 3, 6))
    assert error.value.missing == ((2, 3), (6, 8))


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match="'other'; models here: demo"):
        choose_route(View([peer(1, 0, 8)], NOW), "other", Health(), RouteRequest())


KV = {"kv_bytes_per_token": 800, "kv_total_bytes": 800_000}


def test_a_peer_without_room_is_avoided() -> None:
    full = peer(1, 0, 8, kv_free_bytes=9_999, **KV)
    roomy = peer(2, 0, 8, kv_free_bytes=80_000, step_ms=99.0, **KV)
    assert text(route_over(full, roomy, request=RouteRequest(positions=100))) == "2@0:8"
    assert text(route_over(full, roomy, request=RouteRequest(positions=12))) == "1@0:8"


def test_a_peer_takes_as_many_blocks_as_it_has_room_for() -> None:
    # Eight blocks share 800 bytes a token; there is room for five of them.
    tight = peer(1, 0, 8, kv_free_bytes=50_000, **KV)
    rest = peer(2, 2, 8, step_ms=99.0, kv_free_bytes=800_000, **KV)
    assert text(route_over(tight, rest, request=RouteRequest(positions=100))) == "1@0:5 2@5:8"


def test_a_lack_of_room_now_is_told_with_numbers() -> None:
    full = peer(1, 0, 8, kv_free_bytes=40_000, **KV)
    with pytest.raises(KVExhausted, match=r"500 positions .* 5% of the peers' KV is free now"):
        route_over(full, request=RouteRequest(positions=500))
    with pytest.raises(KVExhausted):
        route_over(full, request=RouteRequest(positions=1000))


@pytest.mark.parametrize("free", [0, 40_000, 800_000])
@pytest.mark.parametrize("positions", [1001, 8000, 9000])
def test_what_no_idle_swarm_has_room_for_is_told_at_once(free: int, positions: int) -> None:
    # A session takes its share of all eight blocks: 800 bytes a position of 800,000.
    only = peer(1, 0, 8, kv_free_bytes=free, **KV)
    text = rf"{positions} positions .* room for 1000 when idle"
    with pytest.raises(PromptTooLong, match=text):
        route_over(only, request=RouteRequest(positions=positions))


def test_peers_that_share_the_blocks_have_room_for_longer_sessions() -> None:
    # Four blocks each: twice as many positions as one peer alone has room for.
    pair = [peer(n, 0, 8, kv_free_bytes=0, **KV) for n in (1, 2)]
    with pytest.raises(KVExhausted):
        route_over(*pair, request=RouteRequest(positions=2000))
    with pytest.raises(PromptTooLong, match="room for 2000 when idle"):
        route_over(*pair, request=RouteRequest(positions=2001))


def test_a_peer_that_is_avoided_for_a_while_counts_as_room_to_wait_for() -> None:
    small = peer(1, 0, 8, kv_bytes_per_token=800, kv_total_bytes=8_000, kv_free_bytes=8_000)
    large = peer(2, 0, 8, kv_free_bytes=800_000, **KV)
    request = RouteRequest(positions=500, exclude=frozenset({peer_id(2)}))
    with pytest.raises(KVExhausted):
        route_over(small, large, request=request)


def test_a_hole_is_covered_exactly() -> None:
    peers = [peer(1, 0, 3), peer(2, 2, 7), peer(3, 6, 8), peer(4, 4, 8, step_ms=40.0)]
    view = View(peers, NOW)
    hops = cover(view, "demo", Span(3, 6), Health(), exclude=[peer_id(1), peer_id(3)])
    assert text(hops) == "2@3:6"
    with pytest.raises(CoverageError) as error:
        cover(view, "demo", Span(3, 6), Health(), exclude=[peer_id(2)])
    assert error.value.missing == ((3, 4),)


def test_a_hole_is_covered_in_the_same_precision_while_anybody_has_it() -> None:
    fast = peer(1, 0, 8, precision="float16")
    slow = peer(2, 0, 4, precision="bfloat16", step_ms=99.0)
    hops = cover(View([fast, slow], NOW), "demo", Span(1, 6), Health(), same_precision="bfloat16")
    assert text(hops) == "2@1:4 1@4:6"


def test_a_peer_is_one_hop_only() -> None:
    # Cheapest would be 1, then 2 for the middle, then 1 again.
    outer, inner = peer(1, 0, 8, step_ms=80.0), peer(2, 2, 6)
    assert text(route_over(outer, inner)) == "1@0:8"
    other_end = peer(3, 6, 8, step_ms=30.0)
    assert text(route_over(outer, inner, other_end)) == "1@0:2 2@2:6 3@6:8"


# The search against all routes there are ----------------------------------------------------------


def all_paths(offers: Sequence[Offer], at: int, end: int) -> Iterator[Path]:
    """Yield every path that uses no peer twice."""
    if at == end:
        yield []
        return
    for offer in offers:
        if at not in offer.blocks:
            continue
        others = [other for other in offers if other.peer is not offer.peer]
        for stop in range(at + 1, min(offer.blocks.end, at + offer.max_blocks, end) + 1):
            for rest in all_paths(others, stop, end):
                yield [(offer, Span(at, stop)), *rest]


@st.composite
def offers_of(draw: st.DrawFn, limited: bool) -> list[Offer]:
    offers = []
    for number in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, 5))
        end = draw(st.integers(start + 1, 6))
        place = tuple(draw(st.integers(0, 20)) + 0.5 for _ in range(3))
        offers.append(
            Offer(
                peer(number, start, end, coordinate=place),
                Span(start, end),
                draw(st.integers(1, 6)) if limited else 6,
                draw(st.integers(1, 30)) / 2,
                draw(st.integers(1, 40)) / 2,
            )
        )
    return offers


SEARCHES = pytest.mark.parametrize("search", [cheapest_path, swept_path])


@SEARCHES
@settings(max_examples=150, deadline=None)
@given(offers=st.booleans().flatmap(offers_of))
def test_the_search_finds_the_cheapest_of_all_routes(search: Search, offers: list[Offer]) -> None:
    origin = peer(99, 0, 1, coordinate=(3.0, 3.0, 1.0))
    found = cheapest_route(offers, Span(0, 6), origin, origin, search)
    costs = [path_cost(path, origin, origin) for path in all_paths(offers, 0, 6)]
    if not costs:
        assert found is None
        return
    assert found is not None
    assert path_cost(found, origin, origin) == pytest.approx(min(costs))
    assert len({offer.peer.peer_id for offer, _ in found}) == len(found)
    assert [found[0][1].start, found[-1][1].end] == [0, 6]
    assert all(left.end == right.start for (_, left), (_, right) in pairwise(found))
    assert all(o.blocks.covers(span) and len(span) <= o.max_blocks for o, span in found)


@SEARCHES
@settings(max_examples=50, deadline=None)
@given(offers=offers_of(limited=False))
def test_without_time_to_branch_there_is_still_a_route(search: Search, offers: list[Offer]) -> None:
    best = cheapest_route(offers, Span(0, 6))
    quick = search(offers, Span(0, 6), repeat=False)
    assert (quick is None) == (best is None)
    if quick is not None and best is not None:
        assert len({offer.peer.peer_id for offer, _ in quick}) == len(quick)
        assert path_cost(quick, None, None) >= path_cost(best, None, None) - 1e-9


@settings(max_examples=100, deadline=None)
@given(offers_of(limited=True), st.floats(0.5, 2.0))
def test_a_limit_hides_only_what_is_dearer(offers: list[Offer], share: float) -> None:
    origin = peer(99, 0, 1, coordinate=(3.0, 3.0, 1.0))
    best = swept_path(offers, Span(0, 6), origin, origin)
    if best is None:
        return
    cost = path_cost(best, origin, origin)
    limit = Limit(cost * share, dict.fromkeys(range(7), 0.0))
    found = swept_path(offers, Span(0, 6), origin, origin, limit=limit)
    if share >= 1.001:
        assert found is not None
        assert path_cost(found, origin, origin) == pytest.approx(cost)
    elif share <= 0.999:
        assert found is None
