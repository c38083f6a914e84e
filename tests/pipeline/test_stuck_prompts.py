"""A hop that is stuck with a prompt is found out by asking, and left; one that is busy is not."""

from __future__ import annotations

from typing import Any

import pytest
from bench_driver import SESSION, Bench, hops, opens, sent, steps
from toy_streams import finish

from swarmd.core.frames import Poll, Polled
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.experience import Experience, Speed, unknown
from swarmd.pipeline.prompt_watch import PromptWatch
from swarmd.simulation import Client, Swarm
from swarmd.toys import toy_model

MODEL = toy_model(6, max_len=4096)
THREE = hops("a 0:2", "b 2:5", "c 5:8")


def quick(peer_id: str) -> Speed:
    return Speed(position_s=0.001, token_s=0.02)


def bench_with_a_prompt(experience: Experience | None = None) -> Bench:
    bench = Bench(experience=experience, prompt_ids=tuple(range(400)))
    bench.run(THREE)
    return bench


def answer(bench: Bench, peer_id: str, accepted: int, computed: int, **rest: Any) -> list[Any]:
    return bench.tell(peer_id, Polled(SESSION, bench.driver.epoch, accepted, computed, **rest))


def test_while_a_prompt_is_computed_hops_are_asked_how_far_they_are_every_few_seconds() -> None:
    bench = bench_with_a_prompt()
    for _ in range(4):
        assert all(len(sent(bench.wait(2.6), peer, Poll)) == 1 for peer in "abc")
    assert bench.driver.repairs == 0


def test_who_is_stuck_with_a_chunk_is_replaced_before_all_of_the_prompt_is_late() -> None:
    bench = bench_with_a_prompt(Experience(quick))
    bench.wait(2.6)
    assert answer(bench, "b", 40, 36, busy_us=2_000_000) == []
    bench.wait(2.5)
    assert answer(bench, "a", 400, 400) == []
    answer(bench, "b", 40, 36, busy_us=5_100_000)
    need = bench.need
    assert (need.spans, need.trusted) == ((THREE[1].blocks,), True)
    assert list(opens(bench.found(hops("x 2:5")))) == ["a", "x", "c"]
    assert bench.driver.repairs == 1


@pytest.mark.parametrize(
    "values",
    [
        {"waits": True, "busy_us": 3_000_000},  # it computes for others
        {"waits": False, "busy_us": 3_000_000},
        {"computed": 40, "waits": True, "busy_us": 60_000_000},  # nothing of this session is there
    ],
)
def test_a_hop_that_works_or_has_nothing_is_waited_for(values: dict[str, Any]) -> None:
    bench = bench_with_a_prompt(Experience(quick))
    asked = bench.need.ask
    for _ in range(7):
        bench.wait(2.5)
        answer(bench, "b", **{"accepted": 40, "computed": 36, **values})
    assert bench.need.ask == asked
    assert bench.driver.repairs == 0


def test_a_prompt_is_not_asked_about_once_tokens_come_one_by_one() -> None:
    bench = Bench()
    bench.run()
    bench.token(10)
    bench.token(11)
    assert bench.driver._prompt.due is None
    bench.gap("b", 5)
    assert len(steps(bench.done)) > 4
    assert bench.driver._prompt.due is not None


# The limits.


def polled(accepted: int, computed: int, busy_s: float = 0.0, *, waits: bool = False) -> Polled:
    return Polled(SESSION, 1, accepted, computed, waits, int(busy_s * 1e6))


def watch(speed: Speed | None = None, ones: int = 0) -> PromptWatch:
    made = PromptWatch((lambda peer_id: speed) if speed else unknown, 512, unknown=70.0)
    made.begin(ones, 100.0)
    return made


def test_stuck_is_four_times_what_is_announced_and_five_seconds_at_least() -> None:
    fast, slow = Speed(0.0001, 0.01), Speed(0.01, 0.1)
    assert not watch(fast).answer("b", polled(9, 8, 4.9), 110.0)
    assert watch(fast).answer("b", polled(9, 8, 5.1), 110.0)
    assert not watch(slow).answer("b", polled(9, 8, 40.0), 150.0)
    assert watch(slow).answer("b", polled(9, 8, 41.0), 150.0)


def test_positions_that_are_computed_one_by_one_take_as_long_as_tokens() -> None:
    speed = Speed(0.0001, 0.01)
    assert not watch(speed, ones=256).answer("b", polled(9, 8, 10.5), 120.0)
    assert watch(speed, ones=256).answer("b", polled(9, 8, 10.7), 120.0)
    unknown_token = Speed(0.0001)
    assert not watch(unknown_token, ones=256).answer("b", polled(9, 8, 60.0), 170.0)


def test_what_others_before_it_replay_may_be_computed_one_by_one() -> None:
    speed = Speed(0.0001, 0.01)
    assert not watch(speed).answer("b", polled(9, 8, 10.5, waits=True), 120.0)
    assert watch(speed).answer("b", polled(9, 8, 10.7, waits=True), 120.0)


def test_where_nothing_is_announced_the_chunks_before_tell_how_long_one_takes() -> None:
    told = watch()
    assert not told.answer("b", polled(900, 0, 2.0), 102.5)
    assert not told.answer("b", polled(900, 512, 1.5), 105.0)  # 3.0 s at most
    assert not told.answer("b", polled(900, 512, 11.9), 115.4)
    assert told.answer("b", polled(900, 512, 12.1), 115.6)
    assert not watch().answer("b", polled(900, 0, 69.0), 180.0), "nothing is known yet"
    assert watch().answer("b", polled(900, 0, 71.0), 180.0)


def test_others_before_it_may_have_longer_chunks_than_its_own_were() -> None:
    told = watch()
    told.answer("b", polled(900, 0, 2.0), 102.5)
    told.answer("b", polled(900, 512, 1.5), 105.0)
    assert not told.answer("b", polled(900, 512, 60.0, waits=True), 170.0)


def test_a_hop_that_has_something_and_computes_nothing_is_stuck_in_the_end() -> None:
    told = watch(Speed(0.001, 0.01))
    assert not told.answer("b", polled(900, 512), 102.0)
    assert not told.answer("b", polled(900, 512), 170.0)
    assert told.answer("b", polled(900, 512), 173.0)
    assert not told.answer("b", polled(900, 512), 175.5), "it was said just now"
    assert told.answer("b", polled(900, 512), 190.0)


def test_a_coordinator_that_stood_still_begins_anew() -> None:
    told = watch(Speed(0.001, 0.01))
    assert not told.answer("b", polled(900, 512), 102.0)
    told.asked(190.0)
    assert not told.answer("b", polled(900, 512), 190.1)


# In a swarm.


def swarm_of(weather: Weather, seed: int = 1) -> Swarm:
    swarm = Swarm(MODEL, seed, weather)
    for name in ("a1", "a2", "b1", "b2", "c1", "c2"):
        swarm.add(name, {"a": "0:2", "b": "2:4", "c": "4:6"}[name[0]])
    swarm.add("me")
    return swarm


def begin(swarm: Swarm, number: int, prompt: int, tokens: int) -> Client:
    client = swarm.client(number, tuple(range(number, number + prompt)), tokens, SamplingParams())
    swarm.start(client, "me")
    return client


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_prompt_of_four_thousand_goes_round_a_hop_that_hangs(place: int) -> None:
    swarm = swarm_of(Weather(delay=(0.001, 0.002), compute=(0.02, 0.03)))
    client = begin(swarm, 1, 4000, 4)
    swarm.run(4.0)
    slow = client.route[place].peer_id
    swarm.nodes[slow].slowed = 1e6
    began = swarm.now
    swarm.run(200.0, lambda: slow in {hop.peer_id for hop in client.route})
    assert swarm.now - began < 30.0
    finish(swarm, client, seconds=20_000.0)
    assert client.repairs == 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("seconds", [(0.1, 0.4), (0.5, 2.0), (3.0, 9.0)])
def test_a_crowd_of_prompts_on_slow_machines_makes_nobody_stuck(
    seconds: tuple[float, float], seed: int
) -> None:
    swarm = swarm_of(Weather(delay=(0.001, 0.002), compute=seconds), seed)
    step = sum(seconds) / 2
    swarm.nodes["me"].experience.announced = lambda peer_id: Speed(step / 8, step)
    crowd = [begin(swarm, number, 100, 8) for number in range(2, 12)]
    finish(swarm, *crowd, seconds=20_000.0)
    assert [client.repairs for client in crowd] == [0] * 10


@pytest.mark.parametrize("seed", range(2))
def test_where_nobody_announces_how_slow_it_is_prompts_make_nobody_stuck_either(seed: int) -> None:
    swarm = swarm_of(Weather(delay=(0.001, 0.002), compute=(3.0, 9.0)), seed)
    crowd = [begin(swarm, number, 200, 8) for number in range(2, 12)]
    swarm.run(20_000.0, lambda: all(client.ids == [] for client in crowd))
    assert [client.repairs for client in crowd] == [0] * 10
    assert swarm.now > 200.0
