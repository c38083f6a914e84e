"""Prompts that begin alike meet at one peer, within limits of load, whichever node is asked."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from swarm_peers import peer, peer_id

from swarmd.core.prefix import PREFIX_UNIT, first_key
from swarmd.swarm.homes import AT_HOME, BOUND, has_room, home_of
from swarmd.swarm.placements import Load

KEYS = [bytes([n]) * 16 for n in range(200)]


def at(key: bytes, peers: list, **unseen: Load) -> int | None:  # type: ignore[type-arg]
    found = home_of(key, peers, unseen)
    return found.pid if found else None


def test_every_node_names_the_same_home_whatever_order_it_knows_the_peers_in() -> None:
    peers = [peer(n, 0, 4) for n in range(1, 6)]
    for key in KEYS:
        assert at(key, peers) == at(key, peers[::-1])


def test_homes_are_spread_and_few_move_when_a_peer_goes() -> None:
    peers = [peer(n, 0, 4) for n in range(1, 5)]
    homes = {key: at(key, peers) for key in KEYS}
    assert min(Counter(homes.values()).values()) > len(KEYS) / 4 / 2
    for key, home in homes.items():
        if home != 3:
            assert at(key, [one for one in peers if one.pid != 3]) == home


def test_thirty_two_prompts_meet_at_one_peer_and_the_rest_goes_on() -> None:
    peers = [peer(1, 0, 4), peer(2, 0, 4)]
    unseen: dict[str, Load] = {}
    taken: Counter[str] = Counter()
    for _ in range(100):
        home = home_of(KEYS[0], peers, unseen)
        assert home is not None
        taken[home.peer_id] += 1
        unseen[home.peer_id] = Load(taken[home.peer_id])
        if sum(taken.values()) == AT_HOME:
            assert len(taken) == 1
    assert max(taken.values()) <= BOUND * 50 + 1


def test_one_without_room_or_much_slower_is_nobodys_home() -> None:
    full = peer(1, 0, 4, kv_total_bytes=1000, kv_free_bytes=10)
    slow = peer(2, 0, 4, step_ms=40.0)
    assert {at(key, [full, slow, peer(3, 0, 4)]) for key in KEYS} == {3}
    assert at(KEYS[0], [full]) is None
    assert at(KEYS[0], []) is None


@given(st.integers(0, 200), st.integers(0, 200))
def test_somebody_always_has_room_where_only_sessions_count(one: int, other: int) -> None:
    peers = [peer(1, 0, 4, sessions=one), peer(2, 0, 4, sessions=other)]
    assert any(has_room(each, peers, {}) for each in peers)
    assert has_room(peers[0], peers, {peer_id(1): Load(-one)})


def test_sessions_that_are_not_batched_do_not_crowd_at_home() -> None:
    peers = [peer(n, 0, 4, ragged=False, sessions=2 * (n == 1)) for n in (1, 2)]
    assert not has_room(peers[0], [*peers, peer(3, 0, 4)], {})


def test_what_a_prompt_is_called_does_not_depend_on_how_it_goes_on() -> None:
    ids = list(range(PREFIX_UNIT + 9))
    assert first_key(ids, "ab") == first_key([*ids[:PREFIX_UNIT], 7], "ab")
    assert first_key(ids, "ab") != first_key([1, *ids[1:]], "ab")
    assert first_key(ids, "ab") != first_key(ids, "ab", b"salt")
    assert first_key(ids[: PREFIX_UNIT - 1], "ab") == b""
