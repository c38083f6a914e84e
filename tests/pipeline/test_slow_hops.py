"""A hop that is slow is left for another one; one that has no equal is waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_driver import ROUTE, SESSION, Bench, hops, opens, sent
from bench_driver import finish as finished
from toy_streams import finish

from swarmd.core.frames import Close, Opened, Polled
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.causes import Cause
from swarmd.pipeline.events import HandOver, Lagging, NeedRoute, PeerLags, PeerLost, RouteFound
from swarmd.pipeline.lag import Lag
from swarmd.pipeline.watch import StepClock, Watch, WatchPolicy
from swarmd.simulation import Client, Swarm
from swarmd.toys import toy_model

MODEL = toy_model(6, max_len=4096)
FAIR = Weather(delay=(0.001, 0.002), compute=(0.02, 0.03))
FAST = Weather(delay=(0.001, 0.002), compute=(0.003, 0.005))
"""Of a small model: twenty times as long is not half a second yet."""
STARVING = frozenset("ab")
NAMES = ("a1", "a2", "b1", "b2", "c1", "c2")


def swarm_of(names: tuple[str, ...] = NAMES, seed: int = 1, weather: Weather = FAIR) -> Swarm:
    """Three spans; a coordinator that computes nothing."""
    swarm = Swarm(MODEL, seed, weather)
    for name in names:
        swarm.add(name, {"a": "0:2", "b": "2:4", "c": "4:6"}[name[0]])
    swarm.add("me")
    return swarm


def begin(swarm: Swarm, number: int = 1, prompt: int = 20, tokens: int = 200) -> Client:
    ids = tuple(range(number, number + prompt))
    client = swarm.client(number, ids, tokens, SamplingParams(seed=number))
    swarm.start(client, "me")
    return client


def after(swarm: Swarm, client: Client, tokens: int) -> None:
    swarm.run(2000.0, lambda: len(client.ids) < tokens)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hop_slowed_twentyfold_is_left_for_its_replica(place: int) -> None:
    swarm = swarm_of()
    client = begin(swarm)
    after(swarm, client, 50)
    slow = client.route[place].peer_id
    swarm.nodes[slow].slowed = 20.0
    began = swarm.now
    after(swarm, client, 60)
    assert swarm.now - began < 3.0
    assert slow not in {hop.peer_id for hop in client.route}
    finish(swarm, client)
    assert client.repairs == 1
    assert client.stall < 1.5
    assert client.run is not None
    assert dict(client.run.driver.causes) == {Cause.SLOW: 1}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hop_that_lags_is_left_though_no_token_takes_half_a_second(place: int) -> None:
    swarm = swarm_of(weather=FAST)
    client = begin(swarm)
    after(swarm, client, 50)
    slow, client.stall = client.route[place].peer_id, 0.0
    swarm.nodes[slow].slowed = 20.0
    began = swarm.now
    after(swarm, client, 62)
    assert swarm.now - began < 1.5
    assert client.stall < WatchPolicy().least
    assert slow not in {hop.peer_id for hop in client.route}
    finish(swarm, client)
    assert client.repairs == 1


def test_a_hop_that_is_slow_now_and_then_is_kept() -> None:
    swarm = swarm_of(weather=FAST)
    client = begin(swarm)
    after(swarm, client, 50)
    name = client.route[1].peer_id
    for tokens in range(55, 195, 10):
        after(swarm, client, tokens)
        swarm.nodes[name].slowed = 20.0
        after(swarm, client, tokens + 2)
        swarm.nodes[name].slowed = 1.0
    finish(swarm, client)
    assert client.repairs == 0


def test_from_one_hop_that_lags_nobody_goes_to_another() -> None:
    swarm = swarm_of(weather=FAST)
    client = begin(swarm)
    after(swarm, client, 50)
    for name in NAMES:
        swarm.nodes[name].slowed = 20.0
    began, repairs = swarm.now, client.repairs
    swarm.run(began + 59.0, lambda: client.finished is None)
    assert client.repairs - repairs <= 2
    finish(swarm, client)


@pytest.mark.parametrize("seed", range(4))
def test_a_crowd_on_fast_hops_makes_none_of_them_lag(seed: int) -> None:
    swarm = swarm_of(seed=seed, weather=FAST)
    first = begin(swarm)
    after(swarm, first, 50)
    crowd = [begin(swarm, number, prompt=200, tokens=60) for number in range(2, 18)]
    finish(swarm, first, *crowd)
    assert [client.repairs for client in (first, *crowd)] == [0] * 17


def test_a_slow_hop_without_an_equal_is_waited_for() -> None:
    swarm = swarm_of(("a1", "b1", "c1"))
    client = begin(swarm)
    after(swarm, client, 50)
    epoch = client.epoch
    swarm.nodes["b1"].slowed = 20.0
    finish(swarm, client)
    assert (client.repairs, client.epoch) == (0, epoch)


def test_a_session_leaves_at_most_two_hops_a_minute_for_being_slow() -> None:
    swarm = swarm_of()
    client = begin(swarm, tokens=150)
    after(swarm, client, 50)
    for name in NAMES:
        swarm.nodes[name].slowed = 20.0
    began, repairs = swarm.now, client.repairs
    swarm.run(began + 59.0, lambda: client.finished is None)
    assert client.repairs - repairs <= 2
    finish(swarm, client)


@pytest.mark.parametrize("seed", range(5))
def test_neither_crowds_nor_long_prompts_make_hops_slow(seed: int) -> None:
    swarm = swarm_of(seed=seed)
    first = begin(swarm)
    after(swarm, first, 50)
    crowd = [begin(swarm, number, prompt=600, tokens=30) for number in range(2, 14)]
    finish(swarm, first, *crowd)
    assert [client.repairs for client in (first, *crowd)] == [0] * 13


def test_a_coordinator_that_stood_still_blames_nobody() -> None:
    swarm = swarm_of()
    client = begin(swarm)
    for tokens in (50, 80, 120, 160):
        after(swarm, client, tokens)
        swarm.freeze("me", 0.9)
    finish(swarm, client)
    assert client.repairs == 0


# A coordinator that is slow itself.


def eased(me: str) -> Bench:
    bench = Bench(me=me, max_tokens=9)
    bench.run()
    bench.token(10)
    return bench


def test_a_slow_coordinator_has_its_own_blocks_taken_over_and_ends_the_stream_then() -> None:
    bench = eased("a")
    bench.handle(HandOver(stays=True))
    assert (bench.need.spans, bench.need.trusted) == ((ROUTE[0].blocks,), True)
    assert finished(bench.token(11)) is None
    assert list(opens(bench.found(hops("x 0:4")))) == ["x", "b"]
    bench.opened("x", 0)
    end = finished(bench.opened("b", 12))
    assert end is not None
    assert end.reason == "moved"
    assert not sent(bench.done, "b", Close)


def test_a_slow_coordinator_without_blocks_ends_the_stream_with_the_next_token() -> None:
    bench = eased("me")
    assert finished(bench.handle(HandOver(stays=True))) is None
    end = finished(bench.token(11))
    assert end is not None
    assert end.reason == "moved"


def test_where_nobody_takes_them_over_it_goes_on_as_slow_as_it_is() -> None:
    bench = eased("a")
    bench.handle(HandOver(stays=True))
    bench.missing((0, 4))
    assert finished(bench.token(11)) is None
    assert bench.driver.repairs == 0


@pytest.mark.parametrize("answer", ["nobody", "another precision", "none yet"])
def test_a_slow_coordinator_that_kept_its_blocks_is_no_reason_to_move_later(answer: str) -> None:
    bench = eased("a")
    bench.handle(HandOver(stays=True))
    if answer == "nobody":
        bench.missing((0, 4))
    elif answer == "another precision":
        bench.found(tuple(replace(hop, precision="other") for hop in hops("x 0:4")))
    bench.token(11)
    bench.handle(PeerLost("a"))  # its stage has failed, and somebody else has the blocks
    assert list(opens(bench.found(hops("x 0:4")))) == ["x", "b"]
    bench.opened("x", 0)
    assert finished(bench.opened("b", 12)) is None
    assert finished(bench.token(12)) is None


def test_before_it_runs_a_session_is_not_given_away() -> None:
    bench = Bench()
    bench.handle(HandOver(stays=True))
    bench.start()
    bench.handle(HandOver(stays=True))
    bench.found()
    bench.opened("a")
    bench.opened("b")
    assert finished(bench.token(10)) is None
    assert finished(bench.token(11)) is None


def test_to_be_given_away_counts_as_leaving_a_hop() -> None:
    bench = eased("a")
    for _ in range(WatchPolicy().switches):
        bench.driver._watch.left(bench.now)
    asked = bench.need.ask
    bench.handle(HandOver(stays=True))
    assert bench.need.ask == asked


def test_that_another_hop_is_borne_is_no_reason_for_a_slow_coordinator_to_stay() -> None:
    bench = eased("me")
    bench.handle(HandOver(stays=True))
    bench.handle(PeerLags("b", STARVING))
    bench.missing((4, 8))
    end = finished(bench.token(11))
    assert end is not None
    assert end.reason == "moved"


# A hop that says itself that it is slow.


def test_a_hop_that_says_it_starves_is_left_at_once() -> None:
    bench = eased("me")
    bench.handle(PeerLags("b", STARVING))
    assert (bench.need.spans, bench.need.trusted) == ((ROUTE[1].blocks,), True)
    assert finished(bench.token(11)) is None
    assert list(opens(bench.found(hops("y 4:8")))) == ["a", "y"]
    assert bench.driver.causes == {Cause.SLOW: 1}
    assert not [action for action in bench.done if isinstance(action, Lagging)], "all know it"


@pytest.mark.parametrize("never", ["not a hop", "too often", "asked already", "opening"])
def test_a_hop_that_starves_is_not_left(never: str) -> None:
    bench = eased("me")
    if never == "too often":
        for _ in range(WatchPolicy().switches):
            bench.driver._watch.left(bench.now)
    elif never == "asked already":
        bench.handle(PeerLags("a", STARVING))
    elif never == "opening":
        bench.lose("a")
        bench.found(hops("x 0:4"))
    asked = bench.need.ask
    bench.handle(PeerLags("z" if never == "not a hop" else "b", STARVING))
    assert bench.need.ask == asked


@pytest.mark.parametrize("starves", [False, True])
def test_a_copy_takes_the_place_of_a_hop_that_starves_unless_it_does_as_well(
    *, starves: bool
) -> None:
    bench = Bench(me="me", max_tokens=20, standby=1)
    bench.start()
    bench.found()
    for peer in "ab":
        bench.tell(peer, Opened(SESSION, bench.driver.epoch, copies=True))
    bench.token(10)
    asks = {a.spans: a.ask for a in bench.done if isinstance(a, NeedRoute) and a.spare}
    bench.handle(RouteFound(asks[(ROUTE[0].blocks,)], hops("x 0:4")))
    bench.opened("x")
    asked = bench.need.ask
    actions = bench.handle(PeerLags("a", frozenset({"a", "x"} if starves else {"a"})))
    assert ("x" in opens(actions)) is not starves
    assert (bench.need.ask != asked) is starves


def test_where_nobody_could_do_better_a_hop_that_starves_is_asked_about_again() -> None:
    bench = eased("me")
    bench.handle(PeerLags("b", STARVING))
    asked = bench.need.ask
    bench.missing((4, 8))
    assert finished(bench.token(11)) is None
    bench.handle(PeerLags("b", STARVING))
    assert bench.need.ask != asked


# The parts.


def measured(*seconds: float) -> Watch:
    watch = Watch(WatchPolicy(enough=4, window=20))
    for took in seconds:
        watch.begin(9, 0, 10.0)
        watch.token(0, 10.0 + took)
    return watch


def test_late_is_four_times_the_p95_and_half_a_second_at_least() -> None:
    assert measured(0.1, 0.1, 0.1).clock.limits()[0] == WatchPolicy().at_first
    assert measured(0.1, 0.1, 0.1, 0.1).clock.limits()[0] == 0.5
    assert measured(*[0.1] * 18, 0.5, 0.5).clock.limits()[0] == pytest.approx(2.0)
    assert measured(*[0.1] * 19, 0.5).clock.limits()[0] == pytest.approx(2.0)
    clock = StepClock(WatchPolicy(window=3, enough=1))
    for seconds in (9.0, 1.0, 1.0, 1.0):
        clock.add(seconds)
    assert clock.limits()[0] == 4.0


def test_waiting_for_ones_turn_is_no_part_of_a_tokens_time() -> None:
    watch = measured()
    for _ in range(4):
        watch.begin(9, 500_000, 10.0)
        watch.token(2_400_000, 12.0)
    assert watch.clock.limits()[0] == pytest.approx(0.5)


def polled(accepted: int, computed: int, waits: bool = False, busy_us: int = 200_000) -> Polled:
    return Polled(b"s" * 16, 1, accepted, computed, waits, busy_us)


@pytest.mark.parametrize(
    ("answers", "blamed"),
    [
        ({"a": polled(9, 9)}, "b"),
        ({"b": polled(9, 8)}, "a"),
        ({"a": polled(9, 8), "b": polled(8, 8)}, "a"),
        ({"a": polled(9, 9), "b": polled(9, 8)}, "b"),
        ({"a": polled(9, 9), "b": polled(8, 8)}, "b"),
        ({"a": polled(9, 9), "b": polled(9, 8, True, 10_000)}, None),
        ({"a": polled(9, 9), "b": polled(9, 8, False, 10_000)}, None),
        ({"a": polled(9, 9), "b": polled(9, 8, True, 600_000)}, "b"),
        ({"a": polled(9, 9), "b": polled(9, 9)}, None),
    ],
)
def test_the_first_hop_that_is_not_known_to_be_done_is_to_blame(
    answers: dict[str, Polled], blamed: str | None
) -> None:
    watch = measured(*[0.12] * 10)
    watch.begin(9, 0, 100.0)
    assert watch.due == pytest.approx(100.25)
    assert watch.look(100.25)
    for peer, answer in answers.items():
        assert watch.answer(peer, answer, ROUTE, 100.3) is None
    assert not watch.look(100.5)
    found = watch.blamed(ROUTE, 100.5)
    assert (found and found.peer_id) == blamed


def test_who_holds_up_four_tokens_of_ten_lags() -> None:
    lag = Lag(times=4, of=10)
    for peer in ("b", "", "b", "a", "b", "", "a"):
        lag.note(peer)
    assert not lag.is_of("b")
    lag.note("b")
    assert (lag.is_of("b"), lag.is_of("a")) == (True, False)
    for _ in range(3):
        lag.note()
    assert not lag.is_of("b"), "the first of them is too long ago"


@pytest.mark.parametrize("warned", [True, False])
def test_a_peer_that_others_leave_is_left_with_the_next_token_that_it_holds_up(
    warned: bool,
) -> None:
    watch = measured(*[0.02] * 10)
    if warned:
        watch.warned_of("b")
    watch.begin(9, 0, 100.0)
    assert watch.look(100.06)
    watch.answer("a", polled(9, 9), ROUTE, 100.07)
    found = watch.answer("b", polled(9, 8), ROUTE, 100.07)
    assert (found and found.peer_id) == ("b" if warned else None)


def test_where_tokens_are_fast_hops_are_asked_early_and_left_for_the_fourth_time() -> None:
    watch = measured(*[0.02] * 10)
    for turn in range(4):
        watch.begin(9, 0, 100.0)
        assert watch.due == pytest.approx(100.06)
        assert watch.look(100.06)
        assert watch.answer("a", polled(9, 9), ROUTE, 100.07) is None
        assert watch.due == pytest.approx(100.14)
        assert not watch.look(100.14)
        found = watch.blamed(ROUTE, 100.14)
        assert (found and found.peer_id) == (None if turn < 3 else "b")
        watch.token(0, 100.2)
