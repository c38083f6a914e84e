"""A crowd that starts between two announcements is spread as if each session had been announced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peers import NOW, peer, peer_id

from swarmd.core.errors import KVExhausted
from swarmd.core.peers import Announcement
from swarmd.core.route import Hop
from swarmd.core.span import Span
from swarmd.swarm.health import Health
from swarmd.swarm.placements import SETTLE_S, UNSEEN_S, Load, Placements
from swarmd.swarm.router import choose_route, cover
from swarmd.swarm.terms import RouteRequest
from swarmd.swarm.view import View

KV = {"kv_bytes_per_token": 800, "kv_total_bytes": 800_000, "kv_free_bytes": 800_000}


def burst(
    sessions: int, peers: Sequence[Announcement], origin: int = 99, positions: int = 0
) -> Counter[int]:
    """Place sessions over one view; return how many hops each peer got."""
    view, placements = View(peers, NOW), Placements()
    taken: Counter[int] = Counter()
    for number in range(sessions):
        now = NOW + number / 1000
        request, unseen = RouteRequest(positions), placements.unseen(view, now)
        route = choose_route(view, "demo", Health(), request, peer_id(origin), unseen)
        placements.add(route, positions, view, now)
        taken.update(int(hop.peer_id, 16) for hop in route)
    return taken


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(1, 64), st.sampled_from([1.0, 8.0, 80.0]))
def test_equal_replicas_get_equal_shares(replicas: int, sessions: int, step_ms: float) -> None:
    peers = [peer(n, 0, 8, step_ms=step_ms) for n in range(1, replicas + 1)]
    taken = burst(sessions, peers)
    shares = [taken[n] for n in range(1, replicas + 1)]
    assert sum(shares) == sessions
    assert max(shares) - min(shares) <= 1


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([4.0, 16.0, 64.0]), st.sampled_from([1, 2]), st.booleans())
def test_replicas_get_work_by_their_speed(step_ms: float, pairs: int, kv: bool) -> None:
    room = KV if kv else {}
    peers = [
        peer(2 * n + fast, 0, 8, step_ms=step_ms / (1 + fast), **room)
        for n in range(pairs)
        for fast in (0, 1)
    ]
    taken = burst(64, peers, positions=10)
    fast = sum(count for number, count in taken.items() if number % 2)
    # Two thirds, but for the first few: an idle fast machine is better than an idle slow one.
    assert 64 * 2 / 3 - 1 <= fast <= 64 * 2 / 3 + 4 * pairs


def test_each_part_of_the_route_is_spread() -> None:
    peers = [peer(n, 0, 4) for n in (1, 2)] + [peer(n, 4, 8) for n in (3, 4, 5)]
    taken = burst(30, peers)
    assert [taken[n] for n in (1, 2)] == [15, 15]
    assert [taken[n] for n in (3, 4, 5)] == [10, 10, 10]


def test_what_was_placed_has_taken_its_kv() -> None:
    # Room for 1,000 positions each.
    peers = [peer(1, 0, 8, **KV), peer(2, 0, 8, step_ms=40.0, **KV)]
    assert burst(4, peers, positions=500) == {1: 2, 2: 2}
    with pytest.raises(KVExhausted):
        burst(5, peers, positions=500)


def test_of_two_idle_peers_the_one_with_more_room_is_taken() -> None:
    tight = peer(1, 0, 8, **KV | {"kv_free_bytes": 200_000})
    assert burst(1, [tight, peer(2, 0, 8, **KV)]) == {2: 1}


def test_what_is_announced_counts_like_what_was_placed() -> None:
    busy = peer(1, 0, 8, sessions=10)
    assert burst(30, [busy, peer(2, 0, 8)]) == {1: 10, 2: 20}


def test_a_hole_is_filled_by_whom_the_crowd_has_spared() -> None:
    view = View([peer(1, 0, 8), peer(2, 0, 8)], NOW)
    hops = cover(view, "demo", Span(2, 5), Health(), unseen={peer_id(1): Load(sessions=1)})
    assert [hop.peer_id for hop in hops] == [peer_id(2)]


# How long a placement counts --------------------------------------------------------------------

HOPS = (Hop(peer_id(1), Span(0, 4)), Hop(peer_id(2), Span(4, 8)))


def placed(view: View) -> Placements:
    placements = Placements()
    placements.add(HOPS, 100, view, NOW)
    return placements


def test_a_hop_takes_the_kv_of_its_blocks() -> None:
    view = View([peer(1, 0, 8, **KV), peer(2, 4, 8, **KV)], NOW)
    unseen = placed(view).unseen(view, NOW)
    assert unseen == {peer_id(1): Load(1, 40_000), peer_id(2): Load(1, 80_000)}


def test_a_placement_counts_until_the_peer_has_announced_itself_anew() -> None:
    old = [peer(1, 0, 8), peer(2, 4, 8)]
    placements = placed(View(old, NOW))
    at_once = replace(old[0], issued_at=NOW + SETTLE_S / 2)
    assert set(placements.unseen(View([at_once, old[1]], NOW), NOW + 1)) == {
        peer_id(1),
        peer_id(2),
    }
    later = replace(old[0], issued_at=NOW + SETTLE_S + 0.1)
    assert set(placements.unseen(View([later, old[1]], NOW), NOW + 1)) == {peer_id(2)}
    # Seen is seen, whatever view comes next.
    assert set(placements.unseen(View(old, NOW), NOW + 1)) == {peer_id(2)}


@pytest.mark.parametrize("passed", [UNSEEN_S, -UNSEEN_S])
def test_a_placement_is_forgotten_after_a_while(passed: float) -> None:
    view = View([peer(1, 0, 8), peer(2, 4, 8)], NOW)
    placements = placed(view)
    assert len(placements.unseen(view, NOW + 0.9 * passed)) == 2
    assert placements.unseen(view, NOW + passed) == {}


def test_what_a_session_held_is_free_before_that_is_announced() -> None:
    full = peer(1, 0, 8, **KV | {"kv_free_bytes": 0})
    view, placements = View([full], NOW), Placements()
    with pytest.raises(KVExhausted):
        choose_route(view, "demo", Health(), RouteRequest(500), unseen=placements.unseen(view, NOW))
    placements.end([Hop(peer_id(1), Span(0, 8))], 600, view, NOW)
    assert placements.unseen(view, NOW) == {peer_id(1): Load(-1, -600 * 800)}
    request, unseen = RouteRequest(500), placements.unseen(view, NOW)
    assert choose_route(view, "demo", Health(), request, unseen=unseen)
    placements.add([Hop(peer_id(1), Span(0, 8))], 600, view, NOW)
    assert placements.unseen(view, NOW) == {peer_id(1): Load(0, 0)}


def test_who_has_just_been_left_is_taken_again() -> None:
    view, placements = (
        View([peer(1, 0, 8, sessions=3), peer(2, 0, 8, sessions=3)], NOW),
        Placements(),
    )
    placements.end([Hop(peer_id(2), Span(0, 8))], 10, view, NOW)
    unseen = placements.unseen(view, NOW)
    (hop,) = choose_route(view, "demo", Health(), RouteRequest(), unseen=unseen)
    assert hop.peer_id == peer_id(2)


def test_a_peer_that_is_lost_has_no_placements() -> None:
    view = View([peer(1, 0, 8), peer(2, 4, 8)], NOW)
    placements = placed(view)
    placements.forget(peer_id(1))
    assert set(placements.unseen(view, NOW)) == {peer_id(2)}
    assert placements.unseen(View([peer(1, 0, 8)], NOW), NOW) == {}
