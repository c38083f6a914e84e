"""Where serving nodes should move: gaps are closed, nobody leaves what only it holds, all rest."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from swarm_peers import NOW, peer, peer_id

from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span, missing_blocks
from swarmd.swarm.placement import MOVE_GAIN, throughputs
from swarmd.swarm.rebalance import Move, Reason, better_place, watched_by
from swarmd.swarm.view import View

BLOCKS = 12


def node(number: int, start: int, end: int, **fields: object) -> Announcement:
    return peer(number, start, end, BLOCKS, **{"moves": True} | fields)


def better(
    peers: list[Announcement], number: int, gone: frozenset[str] = frozenset(), yields: bool = True
) -> Move | None:
    (own,) = [p for p in peers if p.peer_id == peer_id(number)]
    view = View(peers, NOW)
    return better_place(view, "demo", own, len(own.span), gone=gone, yields=yields)


def missing(peers: list[Announcement]) -> int:
    return sum(end - start for start, end in missing_blocks((p.span for p in peers), BLOCKS))


def test_a_redundant_node_moves_into_a_gap_and_the_only_holder_stays() -> None:
    peers = [node(1, 0, 6), node(2, 0, 6)]
    assert better(peers, 1) == better(peers, 2) == Move(Span(6, 12), Reason.GAP)
    assert better(peers[:1], 1) is None


def test_a_peer_that_cannot_be_reached_leaves_a_gap_before_its_lease_ends() -> None:
    peers = [node(1, 0, 6), node(2, 0, 6), node(3, 6, 12)]
    assert better(peers, 2) is None
    assert better(peers, 2, gone=frozenset({peer_id(3)})) == Move(Span(6, 12), Reason.GAP)


def test_nobody_leaves_blocks_to_one_that_loads_drains_or_plans_to_go() -> None:
    for other in (
        node(2, 0, 6, state=NodeState.LOADING),
        node(2, 0, 6, state=NodeState.DRAINING),
        node(2, 0, 6, plan=Span(6, 12)),
        node(2, 0, 6, leaves=True),
    ):
        assert better([node(1, 0, 6), other], 1) is None


def test_what_another_loads_or_plans_is_no_gap_any_more() -> None:
    serving = [node(1, 0, 6), node(2, 0, 6)]
    for other in (
        node(3, 6, 12, state=NodeState.LOADING),
        node(3, 0, 6, plan=Span(6, 12)),
        node(3, 0, 6, plan=Span(6, 12), state=NodeState.DRAINING),
    ):
        assert better([*serving, other], 1) is None


def test_of_two_plans_for_one_gap_the_lower_id_counts() -> None:
    peers = [node(n, 0, 6, plan=Span(6, 12)) for n in (1, 2)]
    assert better(peers, 1, yields=False) == Move(Span(6, 12), Reason.GAP)
    assert better(peers, 2, yields=False) is None
    # But one that drains already is past the point of making way.
    peers[1] = replace(peers[1], state=NodeState.DRAINING)
    assert better(peers, 1, yields=False) is None


def test_a_small_gain_moves_nobody() -> None:
    peers = [node(1, 0, 6), node(2, 0, 6), node(3, 6, 12, step_ms=5.0)]
    assert better(peers, 2) is None
    peers[2] = node(3, 6, 12, step_ms=90.0)
    assert better(peers, 2) == Move(Span(6, 12), Reason.THIN)


def test_each_thin_part_is_raised_though_another_is_as_thin() -> None:
    peers = [node(1, 0, 3), *(node(n, 3, 9) for n in (2, 3, 4)), node(5, 9, 12), node(6, 3, 6)]
    assert better(peers, 6) in (Move(Span(0, 3), Reason.THIN), Move(Span(9, 12), Reason.THIN))


def test_one_that_has_measured_nothing_is_taken_for_as_fast_as_the_others() -> None:
    # By the default of a millisecond, the idle holder of 6:12 would seem 50 times faster.
    slow = {"step_ms": 300.0}
    peers = [*(node(n, 0, 6, **slow) for n in (1, 2)), node(3, 6, 12, step_ms=0.0)]
    assert better([*peers, node(4, 6, 12, **slow)], 4) is None


def test_where_no_node_can_close_a_gap_alone_they_shift_one_after_the_other() -> None:
    peers = [node(1, 1, 4), node(2, 4, 7), node(3, 6, 8), node(4, 8, 12)]
    assert missing(peers) == 1
    assert better(peers, 1) is None
    assert better(peers, 2) == Move(Span(3, 6), Reason.GAP)
    peers[1] = node(2, 3, 6)
    assert better(peers, 1) == Move(Span(0, 3), Reason.GAP)


def test_nodes_whose_blocks_were_chosen_by_hand_are_not_counted_on_to_shift() -> None:
    peers = [node(1, 1, 4), node(2, 4, 7, moves=False), node(3, 6, 8), node(4, 8, 12)]
    assert all(better(peers, n) is None for n in (1, 3, 4))


def swarm(chance: random.Random) -> list[Announcement]:
    peers = []
    for number in range(chance.randint(1, 9)):
        length = chance.randint(1, BLOCKS if chance.random() < 0.2 else 6)
        start = chance.randint(0, BLOCKS - length)
        speed = chance.choice((1.0, 2.0, 5.0))
        peers.append(node(number, start, start + length, step_ms=length * speed))
    return peers


@pytest.mark.parametrize("seed", range(150))
def test_unequal_machines_come_to_rest_from_any_start_and_never_uncover(seed: int) -> None:
    """One after another in any order; a fixed point is where nobody wants to move."""
    chance = random.Random(seed)
    peers = swarm(chance)
    for _ in range(40):
        moves = [(n, m) for n in range(len(peers)) if (m := better(peers, n)) is not None]
        if not moves:
            break
        number, move = chance.choice(moves)
        before = missing(peers)
        peers[number] = replace(peers[number], span=move.span)
        assert missing(peers) <= before
    else:
        pytest.fail("still moving after 40 moves")
    if sum(len(p.span) for p in peers) >= BLOCKS:
        assert missing(peers) == 0


def best_possible(peers: list[Announcement]) -> float:
    """The slowest block's tokens per second in the best of all placements."""
    starts = [range(BLOCKS - len(p.span) + 1) for p in peers]
    return max(
        min(throughputs([replace(p, span=Span(s, s + len(p.span))) for p, s in placed], BLOCKS))
        for placed in (
            list(zip(peers, chosen, strict=True)) for chosen in itertools.product(*starts)
        )
    )


def test_equal_machines_end_within_the_hysteresis_of_the_best_placement() -> None:
    peers = [node(n, 0, 6) for n in range(4)]
    while moves := [(n, m) for n in range(4) if (m := better(peers, n)) is not None]:
        peers[moves[0][0]] = replace(peers[moves[0][0]], span=moves[0][1].span)
    assert min(throughputs(peers, BLOCKS)) * MOVE_GAIN >= best_possible(peers)


def test_a_peer_is_watched_by_a_few_that_could_step_in_and_by_nobody_else() -> None:
    peers = [node(1, 6, 12), *(node(n, 0, 6) for n in range(2, 12)), node(12, 0, 6, moves=False)]
    view = View(peers, NOW)
    watching = [p for p in peers if peers[0] in watched_by(view, "demo", p)]
    assert len(watching) == 3
    assert peers[-1] not in watching
    (first, *_) = watched_by(view, "demo", watching[0])
    assert first == peers[0]
    assert watched_by(view, "demo", peers[0]) == ()
