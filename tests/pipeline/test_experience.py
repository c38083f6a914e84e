"""What earlier sessions have measured says how long a new one's first tokens should take."""

from __future__ import annotations

import pytest
from bench_driver import hops

from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.experience import FADES_S, MAX_PEERS, SAMPLES, Experience
from swarmd.pipeline.watch import StepClock, Watch, WatchPolicy
from swarmd.simulation import Client, Swarm
from swarmd.toys import toy_model

ROUTE = hops("a 0:4", "b 4:8")
MODEL = toy_model(6, max_len=4096)


def met(*seconds: float, known: int = 100, now: float = 10.0) -> Experience:
    experience = Experience()
    for took in seconds:
        experience.note(ROUTE, known, took, now)
    return experience


def test_tokens_of_others_count_where_all_hops_have_been_met_often_enough() -> None:
    experience = met(0.1, 0.1, 0.2, 0.3)
    assert experience.of(ROUTE, 100, 4, 11.0) == [0.1, 0.1, 0.2, 0.3]
    assert experience.of(ROUTE, 100, 5, 11.0) == []
    assert experience.of(hops("a 0:4", "c 4:8"), 100, 4, 11.0) == []
    assert experience.of((), 100, 4, 11.0) == []


def test_hops_may_have_been_met_on_different_routes_and_the_slowest_counts() -> None:
    experience = Experience()
    for _ in range(4):
        experience.note(hops("a 0:4", "x 4:8"), 100, 0.1, 10.0)
        experience.note(hops("y 0:4", "b 4:8"), 100, 0.4, 10.0)
    assert experience.of(ROUTE, 100, 4, 11.0) == [0.4] * 4


def test_of_many_tokens_as_many_as_are_wanted_stand_for_all() -> None:
    experience = met(*[i / 100 for i in range(1, 42)])
    assert experience.of(ROUTE, 100, 5, 11.0) == [
        0.01,
        0.1,
        0.2,
        0.29,
        0.39,
    ]


def test_one_hiccup_does_not_have_new_sessions_wait_for_long() -> None:
    experience = met(*[0.1] * (SAMPLES - 1), 10.0)
    watch = Watch(WatchPolicy(), experience)
    watch.begin(100, 0, 11.0, ROUTE)
    assert watch.clock.limits()[0] == WatchPolicy().least


def test_shorter_sessions_say_nothing_of_longer_ones() -> None:
    experience = met(*[0.1] * 4, known=100)
    assert experience.of(ROUTE, 200, 4, 11.0)
    assert not experience.of(ROUTE, 201, 4, 11.0)


def test_experience_fades_and_is_bounded() -> None:
    experience = met(*[0.1] * (SAMPLES + 9))
    assert experience.of(ROUTE, 100, SAMPLES, 10.0 + FADES_S - 1)
    assert not experience.of(ROUTE, 100, SAMPLES + 1, 11.0)
    assert not experience.of(ROUTE, 100, 1, 10.0 + FADES_S)
    for number in range(MAX_PEERS):
        experience.note(hops(f"p{number} 0:8"), 100, 0.1, 11.0)
    assert experience.peers == MAX_PEERS
    assert not experience.of(ROUTE, 100, 1, 11.0)


def test_a_new_session_begins_with_what_others_have_measured() -> None:
    experience = Experience()
    first, policy = Watch(WatchPolicy(enough=4), experience), WatchPolicy(enough=4)
    for _ in range(4):
        first.begin(9, 0, 10.0, ROUTE)
        assert first.clock.limits()[0] == policy.at_first
        first.token(0, 10.2)
    second = Watch(policy, experience)
    second.begin(9, 0, 11.0, ROUTE)
    assert second.clock.limits()[0] == pytest.approx(0.8)
    elsewhere = Watch(policy, experience)
    elsewhere.begin(9, 0, 11.0, hops("x 0:8"))
    assert elsewhere.clock.limits()[0] == policy.at_first


def test_ones_own_tokens_take_the_place_of_what_was_expected() -> None:
    clock = StepClock(WatchPolicy(enough=4, window=6))
    clock.expect([1.0, 1.0, 1.0, 1.0])
    assert clock.limits()[0] == 4.0
    for _ in range(3):
        clock.add(0.2)
    assert clock.limits()[0] == 4.0
    clock.add(0.2)
    assert clock.limits()[0] == pytest.approx(0.8)
    for seconds in (0.3, 0.3, 0.3):
        clock.add(seconds)
    assert clock.limits()[0] == pytest.approx(1.2)


def begin(swarm: Swarm, number: int) -> Client:
    client = swarm.client(number, tuple(range(number, number + 20)), 60, SamplingParams())
    swarm.start(client, "me")
    return client


def after(swarm: Swarm, client: Client, tokens: int) -> None:
    swarm.run(2000.0, lambda: len(client.ids) < tokens)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hop_that_hangs_is_left_as_soon_by_a_session_that_has_just_begun(place: int) -> None:
    swarm = Swarm(MODEL, 1, Weather(delay=(0.001, 0.002), compute=(0.02, 0.03)))
    for name in ("a1", "a2", "b1", "b2", "c1", "c2"):
        swarm.add(name, {"a": "0:2", "b": "2:4", "c": "4:6"}[name[0]])
    swarm.add("me")
    for number in range(1, 9):  # over one or the other of each two
        after(swarm, begin(swarm, number), 60)
    client = begin(swarm, 9)
    after(swarm, client, 3)
    slow = client.route[place].peer_id
    swarm.nodes[slow].slowed = 1e6
    began = swarm.now
    after(swarm, client, 4)
    assert swarm.now - began < 1.5
    assert slow not in {hop.peer_id for hop in client.route}
