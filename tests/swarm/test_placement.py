"""Nodes that choose one after another, or all at once, cover the model and then sit still."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peers import NOW, peer, peer_id

from swarmd.core.errors import ConfigError
from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span, missing_blocks
from swarmd.swarm.placement import choose_span
from swarmd.swarm.view import View

BLOCKS = 12
capacities = st.lists(st.integers(1, BLOCKS), min_size=1, max_size=10)
orders = st.randoms(use_true_random=False)


def node(number: int, span: Span, state: NodeState = NodeState.SERVING) -> Announcement:
    return peer(number, span.start, span.end, BLOCKS, state=state)


def choose(peers: list[Announcement], room: int, number: int, current: Span | None = None) -> Span:
    return choose_span(View(peers, NOW), "demo", BLOCKS, room, peer_id(number), current)


def gaps(peers: list[Announcement]) -> tuple[tuple[int, int], ...]:
    return missing_blocks((p.span for p in peers), BLOCKS)


def test_a_gap_is_closed_first() -> None:
    peers = [node(1, Span(0, 4)), node(2, Span(8, 12))]
    assert choose(peers, 4, 3) == Span(4, 8)
    assert choose(peers, 3, 3) == Span(4, 7)
    assert choose(peers, 6, 3).covers(Span(4, 8))


def test_of_two_gaps_the_one_that_more_fits_into() -> None:
    assert choose([node(1, Span(2, 9))], 5, 2) == Span(7, 12)
    assert choose([node(1, Span(5, 11))], 5, 2) == Span(0, 5)


def test_a_gap_is_not_split() -> None:
    assert choose([node(1, Span(0, 2))], 4, 2) == Span(2, 6)
    assert choose([node(1, Span(10, 12))], 4, 2) == Span(0, 4)


def test_without_gaps_the_thinnest_part_is_raised() -> None:
    peers = [node(1, Span(0, 6)), node(2, Span(6, 12)), node(3, Span(0, 6))]
    assert choose(peers, 6, 4) == Span(6, 12)


def test_a_slow_peer_needs_help_more_than_a_fast_one() -> None:
    slow = peer(1, 0, 6, BLOCKS, step_ms=600.0)
    assert choose([slow, node(2, Span(6, 12))], 6, 3) == Span(0, 6)


def test_a_node_with_room_takes_the_whole_model() -> None:
    assert choose([node(1, Span(0, 4))], 99, 2) == Span(0, 12)


def test_draining_and_excluded_peers_do_not_count_but_loading_ones_do() -> None:
    draining = node(1, Span(0, 6), NodeState.DRAINING)
    assert choose([draining], 6, 3) == Span(0, 6)
    loading = node(1, Span(0, 6), NodeState.LOADING)
    assert choose([loading], 6, 3) == Span(6, 12)


def test_a_node_that_holds_nothing_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match="not one block of demo fits"):
        choose([], 0, 1)


@settings(max_examples=300, deadline=None)
@given(capacities)
def test_nodes_that_start_one_after_another_cover_the_model(rooms: list[int]) -> None:
    peers: list[Announcement] = []
    for number, room in enumerate(rooms):
        span = choose(peers, room, number)
        assert len(span) == min(room, BLOCKS)
        peers.append(node(number, span, NodeState.LOADING))
    covered = BLOCKS - sum(end - start for start, end in gaps(peers))
    assert covered == min(BLOCKS, sum(rooms))


@settings(max_examples=200, deadline=None)
@given(capacities, orders)
def test_nodes_that_start_at_once_make_way_for_each_other(rooms: list[int], order: object) -> None:
    """Each chooses before it sees the others, announces, and asks once more."""
    order.shuffle(rooms)  # type: ignore[attr-defined]
    blind = [node(n, choose([], room, n), NodeState.LOADING) for n, room in enumerate(rooms)]
    settled = [
        node(n, choose(blind, room, n, blind[n].span), NodeState.LOADING)
        for n, room in enumerate(rooms)
    ]
    covered = BLOCKS - sum(end - start for start, end in gaps(settled))
    assert covered == min(BLOCKS, sum(rooms))
    again = [choose(settled, room, n, settled[n].span) for n, room in enumerate(rooms)]
    assert again == [p.span for p in settled]
