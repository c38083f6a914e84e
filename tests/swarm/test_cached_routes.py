"""Routes for a prompt of which some peers have computed the beginning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peers import NOW, peer, peer_id
from swarms import swarm_of

from swarmd.core.peers import Announcement
from swarmd.core.route import Route, check_route
from swarmd.swarm.health import Health
from swarmd.swarm.router import SMALL_SWARM, choose_route
from swarmd.swarm.terms import RouteRequest, price
from swarmd.swarm.view import PREFILL_TOKEN, View

PROMPT, NEW = 1_000, 100


def request_of(cached: Mapping[int, int], prompt: int = PROMPT) -> RouteRequest:
    return RouteRequest(
        positions=prompt + NEW,
        prompt_tokens=prompt,
        cached={peer_id(number): tokens for number, tokens in cached.items()},
    )


def chosen(peers: Sequence[Announcement], request: RouteRequest) -> list[int]:
    route = choose_route(View(peers, NOW), "demo", Health(), request, peer_id(99))
    return [hop.pid for hop in route]


def test_a_prompt_that_is_computed_outweighs_a_faster_machine() -> None:
    # 1,000 tokens are worth the decode of 20: a fifth of what the 100 new ones take.
    peers = [peer(1, 0, 8, step_ms=40.0), peer(2, 0, 8, step_ms=45.0)]
    assert chosen(peers, request_of({})) == [1]
    assert chosen(peers, request_of({2: PROMPT})) == [2]
    assert chosen(peers, request_of({2: PROMPT // 10})) == [1]


def test_a_computed_prompt_does_not_outweigh_a_crowd() -> None:
    peers = [peer(1, 0, 8, step_ms=40.0), peer(2, 0, 8, step_ms=40.0, sessions=8)]
    assert chosen(peers, request_of({2: PROMPT})) == [1]


def test_what_a_prompt_takes_is_what_the_peers_have_measured() -> None:
    # For each new token ten of the prompt are computed: half a step on the one, two on the other.
    peers = [
        peer(1, 0, 8, step_ms=40.0, prefill_ms=2.0),
        peer(2, 0, 8, step_ms=38.0, prefill_ms=8.0),
    ]
    assert chosen(peers, request_of({})) == [1]
    assert chosen(peers, request_of({}, prompt=0)) == [2]
    assert chosen(peers, request_of({2: PROMPT})) == [2]


def test_a_lie_about_prompts_is_worth_no_more_than_what_they_take() -> None:
    # Ten tokens of the prompt for each new one are a fifth of a step.
    honest, slow = peer(1, 0, 8, step_ms=40.0), peer(3, 0, 8, step_ms=500.0)
    braggart = peer(2, 0, 8, step_ms=49.0, prefill_ms=1e-30)
    assert chosen([honest, braggart], request_of({})) == [1]
    # At worst each of them takes a step: eleven of 49 ms.
    modest = peer(2, 0, 8, step_ms=49.0, prefill_ms=float(1 << 53))
    assert chosen([honest, modest], request_of({})) == [1]
    assert chosen([slow, modest], request_of({})) == [2]


@pytest.mark.parametrize("crowd", range(6))
def test_who_holds_a_long_prefix_is_left_only_for_a_queue_that_costs_more(crowd: int) -> None:
    # 2,000 tokens of prompt for 50 new ones: 40 computed for each, which take 0.8 of a step. A
    # session there already counts a quarter of one.
    peers = [peer(1, 0, 8, step_ms=40.0), peer(2, 0, 8, step_ms=40.0, sessions=crowd)]
    request = RouteRequest(2_050, prompt_tokens=2_000, cached={peer_id(2): 2_000})
    assert chosen(peers, request) == ([2] if crowd <= 3 else [1])


def test_what_one_hop_has_is_worth_nothing_when_another_has_it_not() -> None:
    peers = [peer(1, 0, 4, step_ms=20.0), peer(2, 0, 4, step_ms=21.0), peer(3, 4, 8)]
    assert chosen(peers, request_of({2: PROMPT})) == [1, 3]
    assert chosen(peers, request_of({2: PROMPT, 3: PROMPT})) == [2, 3]


def test_more_than_the_prompt_is_worth_no_more_than_the_prompt() -> None:
    peers = [peer(1, 0, 8, step_ms=40.0), peer(2, 0, 8, step_ms=41.0)]
    assert chosen(peers, request_of({1: PROMPT, 2: 10 * PROMPT})) == [1]


def test_without_a_prompt_there_is_nothing_to_save() -> None:
    peers = [peer(1, 0, 8, step_ms=40.0), peer(2, 0, 8, step_ms=41.0)]
    assert chosen(peers, request_of({2: PROMPT}, prompt=0)) == [1]


def test_who_is_not_there_any_more_has_nothing() -> None:
    peers = [peer(1, 0, 8), peer(2, 0, 8)]
    assert chosen(peers, request_of({3: PROMPT, 4: PROMPT})) == [1]


# Against all routes there are --------------------------------------------------------------------


def time_of(route: Sequence[Announcement], cached: Mapping[int, int]) -> float:
    """Return what a token takes on a route, with its part of a prefill after the shortest hit."""
    hit = min(min(PROMPT, cached.get(one.pid, 0)) for one in route)
    steps = 1 + PREFILL_TOKEN * (PROMPT - hit) / NEW
    # All peers are at one place, 2 ms of round trip from each other.
    return sum(price(p)[0] * steps * len(p.span) + price(p)[1] for p in route) + len(route) - 1


def stages(parts: Sequence[Sequence[Announcement]]) -> Iterator[tuple[Announcement, ...]]:
    return product(*parts)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(20, 60), min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.sampled_from([0, 250, 500, 1_000, 3_000]), min_size=9, max_size=9),
)
def test_whole_routes_are_weighed(steps: list[list[int]], hits: list[int]) -> None:
    blocks = 2 * len(steps)
    parts = [
        [
            peer(10 * at + n + 1, 2 * at, 2 * at + 2, blocks, step_ms=float(step))
            for n, step in enumerate(part)
        ]
        for at, part in enumerate(steps)
    ]
    peers = [one for part in parts for one in part]
    cached = {one.pid: hit for one, hit in zip(peers, hits, strict=False)}
    route = chosen(peers, request_of(cached))
    best = min(time_of(way, cached) for way in stages(parts))
    taken = [one for one in peers if one.pid in route]
    assert time_of(taken, cached) == pytest.approx(best)


def test_among_many_peers_those_that_have_the_prompt_are_found() -> None:
    peers = swarm_of(SMALL_SWARM * 4, 32, 4)
    plain: Route = choose_route(View(peers, NOW), "demo", Health(), request_of({}), peer_id(0))
    # Another route, over peers that the plain one does not use, has the whole of a long prompt.
    used = frozenset(hop.peer_id for hop in plain)
    other = choose_route(View(peers, NOW), "demo", Health(), RouteRequest(exclude=used), peer_id(0))
    request = request_of({hop.pid: 100_000 for hop in other}, prompt=100_000)
    found = choose_route(View(peers, NOW), "demo", Health(), request, peer_id(0))
    check_route(found, 32)
    assert {hop.pid for hop in found} <= {hop.pid for hop in other}
