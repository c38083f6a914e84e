"""The longest session of an idle swarm, against all orders of peers that there are."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peers import peer

from swarmd.core.peers import Announcement
from swarmd.core.span import Span
from swarmd.swarm.room import Room, blocks_with_room

NUM_BLOCKS = 6


@st.composite
def peers_with_kv(draw: st.DrawFn) -> list[Announcement]:
    peers = []
    for number in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, NUM_BLOCKS - 1))
        end = draw(st.integers(start + 1, NUM_BLOCKS))
        per_token = (end - start) * 10
        total = draw(st.integers(0, 40)) * 10
        peers.append(peer(number, start, end, kv_bytes_per_token=per_token, kv_total_bytes=total))
    return peers


def covered(peers: Sequence[Announcement], at: int, positions: int) -> bool:
    """Whether hops over different peers get from a block to the end; each way is tried."""
    if at == NUM_BLOCKS:
        return True
    for one in peers:
        room = blocks_with_room(one, positions, one.kv_total_bytes)
        others = [other for other in peers if other is not one]
        if at in one.span and any(
            covered(others, end, positions)
            for end in range(at + 1, min(one.span.end, at + room) + 1)
        ):
            return True
    return False


@settings(max_examples=200, deadline=None)
@given(peers_with_kv(), st.integers(1, 60))
def test_what_fits_is_what_some_order_of_peers_can_hold(
    peers: list[Announcement], positions: int
) -> None:
    room = Room(peers, Span(0, NUM_BLOCKS))
    assert room.fits(positions) == covered(peers, 0, positions)


@settings(max_examples=100, deadline=None)
@given(peers_with_kv())
def test_the_longest_session_fits_and_a_longer_one_does_not(peers: list[Announcement]) -> None:
    room = Room(peers, Span(0, NUM_BLOCKS))
    longest = room.below(1_000)
    assert longest == 0 or covered(peers, 0, longest)
    assert not covered(peers, 0, longest + 1)


def test_a_part_of_the_blocks_has_its_own_room() -> None:
    kv = {"kv_bytes_per_token": 800, "kv_total_bytes": 800_000}
    assert Room([peer(1, 0, 8, **kv)], Span(2, 4)).below(10_000) == 4000
    assert Room([peer(1, 0, 8)], Span(0, 8)).fits(10**9)
