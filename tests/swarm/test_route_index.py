"""Among many peers the route is nearly the cheapest, and found by looking at few of them."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from swarm_peers import NOW, peer, peer_id
from swarms import crowded, request_for, swarm_of

from swarmd.cli.bench.routing import COLUMNS
from swarmd.core.errors import CoverageError, KVExhausted
from swarmd.core.peers import Announcement
from swarmd.core.route import Hop, Route, check_route
from swarmd.core.span import Span
from swarmd.swarm import router
from swarmd.swarm.health import Fault, Health
from swarmd.swarm.paths import Offer, Search, cheapest_path, cheapest_route, path_cost
from swarmd.swarm.placements import Load
from swarmd.swarm.route_index import RouteIndex
from swarmd.swarm.router import SMALL_SWARM, choose_route, cover
from swarmd.swarm.sweep import Effort, Limit, swept_path
from swarmd.swarm.terms import RouteRequest, Terms, price
from swarmd.swarm.view import View

ORIGIN = 0


def costs(
    peers: list[Announcement],
    request: RouteRequest,
    health: Health,
    num_blocks: int,
    search: Search,
) -> tuple[float, float] | None:
    """Return what the chosen route costs and what a search over all peers finds; None if none."""
    view, blocks = View(peers, NOW), Span(0, num_blocks)
    terms = Terms(request, blocks, health, NOW)
    offers = {one.peer_id: offer for one in peers if (offer := terms.offer(one)) is not None}
    end = view.peer(peer_id(ORIGIN))
    witness = cheapest_route(list(offers.values()), blocks, end, end, search)
    if witness is None:
        with pytest.raises((KVExhausted, CoverageError)):
            choose_route(view, "demo", health, request, peer_id(ORIGIN))
        return None
    route = choose_route(view, "demo", health, request, peer_id(ORIGIN))
    check_route(route, num_blocks)
    assert len({hop.peer_id for hop in route}) == len(route)
    path = [(offers[hop.peer_id], hop.blocks) for hop in route]
    assert all(offer.blocks.covers(span) and len(span) <= offer.max_blocks for offer, span in path)
    return path_cost(path, end, end), path_cost(witness, end, end)


def ratios(count: int, seeds: range, scarce: bool, search: Search) -> list[float]:
    """Return how much dearer routes are than what `search` finds among all peers, sorted."""
    found = []
    for seed in seeds:
        num_blocks = 32 if seed % 3 else 80
        peers = swarm_of(count, num_blocks, seed)
        if scarce:
            peers = crowded(peers, seed)
        pair = costs(peers, *request_for(peers, seed), num_blocks, search)
        if pair is not None:
            found.append(pair[0] / pair[1])
    assert len(found) > len(seeds) / 2
    return sorted(found)


@pytest.mark.parametrize("scarce", [False, True])
def test_a_route_through_many_peers_is_nearly_the_cheapest(scarce: bool) -> None:
    found = ratios(400, range(60), scarce, swept_path)
    assert found[int(0.95 * len(found))] < 1.1
    assert found[len(found) // 2] < 1.001
    assert found[0] > 0.999


@pytest.mark.parametrize("scarce", [False, True])
def test_a_route_through_few_peers_is_the_cheapest(scarce: bool) -> None:
    for ratio in ratios(SMALL_SWARM, range(30), scarce, cheapest_path):
        assert ratio == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(10))
def test_the_sweep_finds_what_the_plain_search_finds(seed: int) -> None:
    peers, blocks = swarm_of(60, 32, seed), Span(0, 32)
    request, health = request_for(peers, seed)
    terms = Terms(replace(request, positions=0, exclude=frozenset()), blocks, health, NOW)
    offers = [offer for offer in map(terms.offer, peers) if offer is not None]
    plain, swept = (
        search(offers, blocks, peers[0], peers[1]) for search in (cheapest_path, swept_path)
    )
    assert plain is not None
    assert swept is not None
    cost = path_cost(plain, peers[0], peers[1])
    assert path_cost(swept, peers[0], peers[1]) == pytest.approx(cost)


# What the index promises ------------------------------------------------------------------------


def random_path(offers: list[Offer], num_blocks: int, draw: random.Random) -> list[Offer]:
    """Return offers of different peers that cover all blocks, and part of a block each at least."""
    path: list[Offer] = []
    at = 0
    while at < num_blocks:
        choice = draw.choice([o for o in offers if at in o.blocks and o not in path])
        path.append(choice)
        at = choice.blocks.end
    return path


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ends", [(0, 0), (1, 2), (None, 3), (None, None)])
def test_no_route_costs_less_than_the_bounds_of_its_peers(
    seed: int, ends: tuple[int | None, int | None]
) -> None:
    peers, blocks, draw = swarm_of(200, 32, seed), Span(0, 32), random.Random(seed)
    before, after = (None if end is None else peers[end] for end in ends)
    bounds = list(RouteIndex(peers, blocks, before, after, price))
    assert len(bounds) == len(peers)
    assert [bound for bound, _ in bounds] == sorted(bound for bound, _ in bounds)
    bound_of = {offer.peer.peer_id: bound for bound, offer in bounds}
    offers = [offer for _, offer in bounds]
    best = swept_path(offers, blocks, before, after)
    routes = [best] if best else []
    for _ in range(50):
        few = random_path(offers, 32, draw)
        route = swept_path(few, blocks, before, after)
        assert route is not None
        routes.append(route)
    for route in routes:
        cost = path_cost(route, before, after)
        assert all(bound_of[offer.peer.peer_id] <= cost + 1e-6 for offer, _ in route)


def test_the_index_knows_only_who_holds_wanted_blocks() -> None:
    peers = [peer(1, 0, 4), peer(2, 2, 6), peer(3, 6, 8), peer(4, 3, 5)]
    found = {
        offer.peer.pid: offer.blocks
        for _, offer in RouteIndex(peers, Span(3, 5), None, None, price)
    }
    assert found == {1: Span(3, 4), 2: Span(3, 5), 4: Span(3, 5)}


def test_the_index_is_made_once_per_view(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Span] = []

    class Counting(RouteIndex):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]
            made.append(given[1])  # type: ignore[arg-type]

    monkeypatch.setattr(router, "RouteIndex", Counting)
    peers = swarm_of(SMALL_SWARM + 1, 32, 1)
    for view in (View(peers, NOW), View(peers, NOW)):
        for _ in range(3):
            choose_route(view, "demo", Health(), RouteRequest(), peer_id(ORIGIN))
    assert made == [Span(0, 32)] * 2


# What it saves ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "most"), [(1_000, 15_000), (10_000, 15_000)])
def test_a_search_among_many_looks_at_few(count: int, most: int) -> None:
    efforts = []
    for seed in range(3):
        effort = Effort()
        view = View(swarm_of(count, 32, seed), NOW)
        choose_route(view, "demo", Health(), RouteRequest(), peer_id(ORIGIN), effort=effort)
        efforts.append(effort)
    assert max(effort.links for effort in efforts) < most
    assert max(effort.offers for effort in efforts) < 1_000


@pytest.mark.parametrize("seed", range(4))
def test_what_is_known_of_the_cost_saves_effort(seed: int) -> None:
    peers, blocks = swarm_of(300, 32, seed), Span(0, 32)
    index = RouteIndex(peers, blocks, peers[0], peers[0], price)
    offers = [offer for _, offer in index]
    free, bounded = Effort(), Effort()
    best = swept_path(offers, blocks, peers[0], peers[0], effort=free)
    assert best is not None
    cost = path_cost(best, peers[0], peers[0])
    limit = Limit(cost + 1e-6, index.to_go)
    again = swept_path(offers, blocks, peers[0], peers[0], limit=limit, effort=bounded)
    assert again is not None
    assert path_cost(again, peers[0], peers[0]) == pytest.approx(cost)
    assert free.offers == bounded.offers == 300
    assert bounded.links < free.links


def test_the_nearest_site_that_failed_is_looked_past() -> None:
    # Six hundred broken peers at hand would fill any list of the best; three sound ones are far.
    broken = [peer(n, n % 3 * 4, n % 3 * 4 + 4, 12, coordinate=(1.0, 1.0, 0.1)) for n in range(600)]
    sound = [
        peer(900 + n, n * 4, n * 4 + 4, 12, coordinate=(90.0, 0.0, 0.1), step_ms=40.0)
        for n in range(3)
    ]
    health = Health()
    for one in broken:
        health.report(one.peer_id, Fault.FAILED, NOW)
    route = choose_route(View([*broken, *sound], NOW), "demo", health, RouteRequest(), peer_id(0))
    assert [hop.pid for hop in route] == [900, 901, 902]


def far_and_free(count: int) -> list[Announcement]:
    """Many peers at hand whose KV is in use, a pair far away with room."""
    kv = {"kv_bytes_per_token": 800, "kv_total_bytes": 800_000}
    near = [peer(n, n % 2 * 4, n % 2 * 4 + 4, **kv) for n in range(count)]
    far = {"coordinate": (500.0, 0.0, 9.0), "step_ms": 900.0, "kv_free_bytes": 800_000, **kv}
    return [*near, peer(9_001, 0, 4, **far), peer(9_002, 4, 8, **far)]


def test_room_is_found_wherever_it_is() -> None:
    view = View(far_and_free(500), NOW)
    route = choose_route(view, "demo", Health(), RouteRequest(positions=100), peer_id(0))
    assert [hop.pid for hop in route] == [9_001, 9_002]


def test_the_only_holder_of_a_block_is_found() -> None:
    # Hundreds hold all but the last block, with room for a part of theirs only.
    kv = {"kv_bytes_per_token": 800, "kv_total_bytes": 800_000, "kv_free_bytes": 20_000}
    many = [peer(n, 0, 8, 9, **kv) for n in range(700)]
    last = peer(9_000, 8, 9, 9, coordinate=(900.0, 0.0, 50.0), step_ms=5_000.0)
    view = View([*many, last], NOW)
    route = choose_route(view, "demo", Health(), RouteRequest(positions=100), peer_id(0))
    assert route[-1].pid == 9_000
    check_route(route, 9)


@pytest.mark.parametrize("seed", range(6))
def test_loads_that_have_just_ended_do_not_upset_the_bounds(seed: int) -> None:
    # A path that is cheaper than its bounds would be dropped as too dear, and no route be left.
    peers = [replace(one, sessions=20) for one in swarm_of(300, 32, seed)]
    view, request = View(peers, NOW), RouteRequest(prefer=frozenset([peer_id(5), peer_id(6)]))
    ended = {one.peer_id: Load(-20, 0) for one in peers}
    for asked in (RouteRequest(), request):
        before = choose_route(view, "demo", Health(), asked, peer_id(ORIGIN))
        after = choose_route(view, "demo", Health(), asked, peer_id(ORIGIN), ended)
        assert before == after


def survivors_of(route: Route) -> list[Hop]:
    return [hop for hop in route if hop.pid in (7, 8)]


def test_preferred_peers_are_used_among_many_whatever_they_cost() -> None:
    peers = [peer(n, n % 2 * 4, n % 2 * 4 + 4) for n in range(100, 400)]
    kept = [peer(7, 0, 4, step_ms=9_000.0), peer(8, 5, 8, coordinate=(900.0, 0.0, 9.0))]
    request = RouteRequest(prefer=frozenset(one.peer_id for one in kept))
    route = choose_route(View([*peers, *kept], NOW), "demo", Health(), request, peer_id(100))
    assert [(hop.pid, hop.blocks) for hop in survivors_of(route)] == [
        (7, Span(0, 4)),
        (8, Span(5, 8)),
    ]


def test_a_hole_is_covered_among_many_in_the_same_precision() -> None:
    peers = [peer(n, n % 5, n % 5 + 4, precision="float16") for n in range(300)]
    same = peer(900, 2, 6, precision="bfloat16", step_ms=900.0)
    view = View([*peers, same], NOW)
    hops = cover(view, "demo", Span(3, 6), Health(), same_precision="bfloat16", before=peer_id(1))
    assert [(hop.pid, hop.blocks) for hop in hops] == [(900, Span(3, 6))]


def test_the_bench_measures_the_chosen_route_against_the_best() -> None:
    path = Path(__file__).parents[2] / "bench" / "routing.py"
    spec = spec_from_file_location("bench_routing", path)
    assert spec is not None
    assert spec.loader is not None
    bench = module_from_spec(spec)
    spec.loader.exec_module(bench)
    (row,) = bench.run((SMALL_SWARM + 6,), swarms=2)
    assert row["peers"] == SMALL_SWARM + 6
    assert row["ratio_max"] == pytest.approx(1.0)
    assert all(column.key in row for column in COLUMNS if column.key != "ratio_to_full")
