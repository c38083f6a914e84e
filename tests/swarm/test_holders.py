"""Sessions go to who has computed their prompt, while that is where they are done first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from swarm_peers import NOW, peer, peer_id

from swarmd.core.peers import Announcement
from swarmd.swarm.health import Fault, Health
from swarmd.swarm.holders import choose_among_holders
from swarmd.swarm.homes import AT_HOME, BOUND
from swarmd.swarm.placements import Load
from swarmd.swarm.terms import RouteRequest
from swarmd.swarm.view import View

SYSTEM, OWN, NEW = 2048, 64, 32
STEP_MS, PREFILL_MS = 65.0, 2.6
"""Half of a model of 1.1B on one thread, as measured."""


def request_of(cached: Mapping[int, int], prompt: int, new: int) -> RouteRequest:
    held = {peer_id(number): tokens for number, tokens in cached.items()}
    return RouteRequest(prompt + new, prompt_tokens=prompt, cached=held)


def chosen(
    peers: Sequence[Announcement],
    request: RouteRequest,
    health: Health | None = None,
    unseen: Mapping[str, Load] | None = None,
    *,
    stays: bool = False,
) -> list[int]:
    view = View(peers, NOW)
    route = choose_among_holders(
        view, "demo", health or Health(), request, peer_id(99), unseen or {}, stays=stays
    )
    return [hop.pid for hop in route]


def replicas(**of_holder: float) -> list[Announcement]:
    """The holder is number 1."""
    speed = {"step_ms": STEP_MS, "prefill_ms": PREFILL_MS}
    return [peer(1, 0, 8, **speed | of_holder), peer(2, 0, 8, **speed)]


def test_a_holder_that_is_not_busy_gets_the_session() -> None:
    request = request_of({1: SYSTEM}, SYSTEM + OWN, NEW)
    assert chosen(replicas(), request) == [1]
    assert chosen(replicas(step_ms=1.9 * STEP_MS), request) == [1], "speeds are not so exact"


@pytest.mark.parametrize(
    ("cached", "new", "most"),
    [
        # In tokens: what is spared, 2.6 ms each; what comes, 3.25 ms more each for every session.
        (SYSTEM, NEW, AT_HOME - 1),
        # Ten in a hundred are not worth going elsewhere.
        (SYSTEM, 200, 11),
        (150, NEW, 6),
        (150, 500, 2),
    ],
)
def test_an_idle_replica_gets_it_where_the_holder_is_busier_than_its_prefix_is_worth(
    cached: int, new: int, most: int
) -> None:
    request = request_of({1: cached}, cached + OWN, new)
    stays = [chosen(replicas(sessions=n), request) == [1] for n in range(AT_HOME + 8)]
    assert stays == [n <= most for n in range(AT_HOME + 8)]


def test_waiting_steps_count_as_sessions_do() -> None:
    request = request_of({1: SYSTEM}, SYSTEM + OWN, 200)
    assert chosen(replicas(queue_depth=11), request) == [1]
    assert chosen(replicas(queue_depth=12), request) == [2]


def test_a_crowd_of_agents_with_one_system_prompt_stays_together() -> None:
    speed = {"step_ms": STEP_MS / 2, "prefill_ms": PREFILL_MS / 2}
    peers = [peer(n, start, start + 4, **speed) for n, start in ((1, 0), (2, 0), (3, 4), (4, 4))]
    taken: Counter[str] = Counter()
    for _ in range(AT_HOME):
        unseen = {one: Load(count) for one, count in taken.items()}
        request = request_of({1: SYSTEM, 3: SYSTEM}, SYSTEM + OWN, NEW)
        assert chosen(peers, request, unseen=unseen) == [1, 3]
        taken.update(peer_id(n) for n in (1, 3))


def test_beyond_that_nobody_has_more_than_its_share_and_a_bound() -> None:
    taken: Counter[str] = Counter()
    for _ in range(200):
        unseen = {one: Load(count) for one, count in taken.items()}
        (first,) = chosen(replicas(), request_of({1: 10**6}, 10**6, 1), unseen=unseen)
        taken[peer_id(first)] += 1
    assert max(taken.values()) <= BOUND * 100 + 1


def test_those_who_are_to_stay_do_so_however_busy_the_holder_is() -> None:
    request = request_of({1: SYSTEM}, SYSTEM + OWN, NEW)
    busy = replicas(sessions=200)
    assert (chosen(busy, request), chosen(busy, request, stays=True)) == ([2], [1])
    failed = Health()
    failed.report(peer_id(1), Fault.FAILED, NOW)
    assert chosen(busy, request, failed, stays=True) == [2]


def test_what_one_hop_has_is_nothing_where_the_next_one_is_gone() -> None:
    # The second half has to be computed anew, so the first half, too: by the quicker one.
    peers = [peer(1, 0, 4, step_ms=40.0), peer(2, 0, 4, step_ms=20.0), peer(4, 4, 8)]
    assert chosen(peers, request_of({1: SYSTEM, 3: SYSTEM}, SYSTEM + OWN, NEW)) == [2, 4]
    whole = [*peers, peer(3, 4, 8)]
    assert chosen(whole, request_of({1: SYSTEM, 3: SYSTEM}, SYSTEM + OWN, NEW)) == [1, 3]


def test_a_holder_that_has_just_failed_is_left() -> None:
    health = Health()
    request = request_of({1: SYSTEM}, SYSTEM + OWN, NEW)
    health.report(peer_id(1), Fault.FAILED, NOW)
    assert chosen(replicas(), request, health) == [2]
