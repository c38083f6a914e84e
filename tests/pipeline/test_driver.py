"""The rules by which a coordinator opens, feeds and ends a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from bench_driver import (
    REQUEST,
    ROUTE,
    SESSION,
    Bench,
    emitted,
    finish,
    hops,
    opens,
    sent,
    steps,
)
from bench_hop import Bench as HopBench
from bench_hop import frames

from swarmd.core.errors import (
    CoverageError,
    DeadlineExceeded,
    KVExhausted,
    PromptTooLong,
    RequestError,
    SessionError,
    SessionLost,
)
from swarmd.core.frames import Close, Keep, Open, Opened, Refusal, Resume
from swarmd.core.route import EPOCHS_PER_ATTEMPT
from swarmd.core.span import Span
from swarmd.pipeline.causes import Cause
from swarmd.pipeline.driver import DRIVER_TABLE, Driver, DriverState
from swarmd.pipeline.events import (
    NeedRoute,
    PeerLost,
    Routed,
    RouteFound,
    RouteMissing,
    RoutesChanged,
    Send,
    Start,
    Stop,
    Tick,
)
from swarmd.pipeline.policy import DriverPolicy
from swarmd.pipeline.refusals import LASTING


def test_a_new_session_asks_for_a_route_and_opens_all_hops_of_it_at_once() -> None:
    bench = Bench()
    assert bench.start() == [NeedRoute(1, (Span(0, 8),), frozenset(), (), ("",))]
    orders = opens(bench.found())
    assert list(orders) == ["a", "b"]
    first, last = orders["a"], orders["b"]
    assert (first.prev_peer, first.next_peer, first.blocks) == ("me", "b", Span(0, 4))
    assert (last.prev_peer, last.next_peer, last.blocks) == ("a", "", Span(4, 8))
    assert first.fresh
    assert first.epoch == 1
    assert (first.max_positions, first.prompt_tokens) == (15, 10)
    assert (first.sampling, first.token_ids) == (None, ())
    assert (last.sampling, last.token_ids) == (REQUEST.sampling, REQUEST.prompt_ids)


def test_the_prompt_goes_out_in_chunks_when_all_hops_have_agreed() -> None:
    bench = Bench()
    bench.start()
    bench.found()
    assert steps(bench.opened("b")) == []
    actions = bench.opened("a")
    assert Routed(ROUTE, 1) in actions
    assert [(s.position, s.chunks, s.wants) for s in steps(actions)] == [
        (0, (4,), ()),
        (4, (4,), ()),
        (8, (2,), (9,)),
    ]
    assert [s.token_ids for s in steps(actions)] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert sent(actions, "b", Keep) == [Keep((SESSION,))]


def test_each_token_is_emitted_and_sent_back_until_there_are_enough() -> None:
    bench = Bench()
    bench.run()
    for position in range(10, 14):
        actions = bench.token(position, logprob=-0.5, top=((7, -0.1),))
        assert emitted(actions) == [position + 500]
        (step,) = steps(actions)
        assert (step.position, step.chunks, step.token_ids) == (position, (1,), (position + 500,))
        assert step.wants == (position,)
    last = bench.token(14)
    assert emitted(last) == [514]
    assert steps(last) == []
    assert finish(last).reason == "length"
    assert sent(last, "a", Close) == sent(last, "b", Close) == [Close(SESSION, 1)]
    assert bench.driver.next_deadline() is None


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({"stop_ids": frozenset({510})}, True),
        ({"ignore_eos": False, "model": "eos"}, True),
        ({"ignore_eos": True, "model": "eos"}, False),
        ({"ignore_eos": True, "model": "eos", "stop_ids": frozenset({510})}, True),
    ],
)
def test_a_stop_id_ends_the_output_and_is_emitted(changes: dict[str, Any], ends: bool) -> None:
    if changes.get("model") == "eos":
        changes = {**changes, "model": replace(REQUEST.model, eos_token_ids=(510,))}
    bench = Bench(**changes)
    bench.run()
    actions = bench.token(10)
    assert emitted(actions) == [510]
    assert (finish(actions) is not None) is ends
    if ends:
        assert finish(actions).reason == "stop"


def test_logprobs_pass_through() -> None:
    bench = Bench()
    bench.run()
    emit = bench.token(10, logprob=-0.5, top=((7, -0.1),))[0]
    assert (emit.position, emit.logprob, emit.top) == (10, -0.5, ((7, -0.1),))


@pytest.mark.parametrize(
    "changes",
    [{"epoch": 9}, {"round": 1}, {"position": 9}, {"position": 11}, {"peer_id": "a"}, {"id": 1000}],
)
def test_a_token_that_is_not_the_next_one_is_ignored(changes: dict[str, Any]) -> None:
    bench = Bench()
    bench.run()
    assert bench.token(**{"position": 10, **changes}) == []
    assert emitted(bench.token(10)) == [510]
    assert bench.token(10) == []


def test_no_more_steps_are_under_way_than_the_window_allows() -> None:
    bench = Bench(DriverPolicy(window=4), prompt_ids=tuple(range(40)), chunk_size=1)
    first = steps(bench.run())
    assert [s.position for s in first] == [0, 1, 2, 3]
    assert [s.wants for s in first] == [(), (1,), (), (3,)]
    more = bench.token(2)
    assert [s.position for s in steps(more)] == [4, 5]
    assert emitted(more) == []
    assert steps(bench.token(2)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_ids": ()},
        {"prompt_ids": (1000,)},
        {"prompt_ids": (-1,)},
        {"max_tokens": 0},
        {"chunk_size": 0},
        {"known_ids": (1000,), "epoch": 1},
    ],
)
def test_a_request_that_cannot_succeed_fails_before_anybody_is_asked(
    changes: dict[str, Any],
) -> None:
    (end,) = Bench(**changes).start()
    assert end.reason == "error"
    assert isinstance(end.error, RequestError)


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers() -> None:
    (end,) = Bench(max_tokens=503).start()
    assert isinstance(end.error, PromptTooLong)
    assert "10 prompt tokens + max_tokens 503 exceed the model's length of 512" in str(end.error)


@pytest.mark.parametrize("reason", ["cancelled", "stop"])
def test_a_stop_closes_the_session_everywhere(reason: str) -> None:
    bench = Bench()
    bench.run()
    actions = bench.handle(Stop(reason))
    assert finish(actions).reason == reason
    assert sent(actions, "a", Close) == sent(actions, "b", Close) == [Close(SESSION, 1)]
    assert bench.handle(Stop()) == []


def test_a_stop_can_carry_an_error() -> None:
    bench = Bench()
    bench.run()
    late = DeadlineExceeded("too late")
    assert finish(bench.handle(Stop("error", late))).error is late


def test_one_that_has_not_begun_yet_hears_of_others_without_caring() -> None:
    bench = Bench()
    for event in (PeerLost("a"), RoutesChanged(), Tick()):
        assert bench.handle(event) == []
    assert bench.driver.state is DriverState.NEW
    bench.run()


def test_time_in_which_the_node_stood_still_is_no_waiting_for_peers() -> None:
    bench = Bench(known_ids=(510,), epoch=3, route=ROUTE)
    bench.start()
    bench.now += 60.0
    # The node was suspended, and finds a loss before its own tick.
    bench.lose("b")
    assert bench.driver.state is DriverState.ROUTING
    bench.missing()
    bench.missing()
    assert bench.driver.state is DriverState.WAITING


def test_hops_are_told_that_the_session_lives() -> None:
    bench = Bench()
    bench.run()
    actions = bench.wait(10.0)
    assert sent(actions, "a", Keep) == sent(actions, "b", Keep) == [Keep((SESSION,))] * 4


def test_hops_that_give_tokens_need_not_be_told() -> None:
    bench = Bench(max_tokens=9)
    bench.run()
    actions = []
    for position in range(10, 18):
        bench.now += 2.4
        actions += [*bench.token(position), *bench.handle(Tick())]
    assert sent(actions, "a", Keep) == sent(actions, "b", Keep) == []
    assert sent(bench.wait(2.5), "b", Keep) == [Keep((SESSION,))]


# Coverage and room.


def test_a_new_session_without_coverage_fails_at_once_with_the_missing_blocks() -> None:
    bench = Bench()
    bench.start()
    bench.missing((2, 4), (6, 8))
    end = finish(bench.missing((2, 4), (6, 8)))
    assert isinstance(end.error, CoverageError)
    assert end.error.missing == ((2, 4), (6, 8))
    assert "2:4, 6:8" in str(end.error)


def test_a_peer_that_cannot_be_reached_is_replaced_and_the_others_are_let_go() -> None:
    bench = Bench()
    bench.start()
    bench.found()
    bench.opened("a")
    actions = bench.lose("b")
    assert sent(actions, "a", Close) == [Close(SESSION, 1)]
    assert (bench.need.spans, bench.need.exclude) == ((Span(0, 8),), frozenset({"b"}))
    again = opens(bench.found(hops("c 0:4", "d 4:8")))
    assert list(again) == ["c", "d"]
    assert (again["c"].epoch, again["c"].fresh) == (2, True)


def test_a_new_session_whose_only_peer_is_dead_fails_soon_with_its_blocks() -> None:
    bench = Bench()
    bench.start()
    while bench.driver.state is not DriverState.DONE and bench.now < 110:
        if bench.driver.state is DriverState.ROUTING:
            if "b" in bench.need.exclude:
                bench.missing((4, 8))
            else:
                bench.found()
        elif bench.driver.state is DriverState.OPENING:
            bench.now += 0.05
            bench.lose("b")
        else:
            bench.wait(0.05)
    end = finish(bench.done)
    assert isinstance(end.error, CoverageError)
    assert end.error.missing == ((4, 8),)
    assert bench.now < 102.0


def test_a_hop_that_does_not_answer_is_replaced() -> None:
    bench = Bench()
    bench.start()
    bench.found()
    bench.opened("a")
    bench.wait(1.5)
    assert bench.need.exclude == {"b"}


def test_a_tick_that_comes_far_too_late_gives_answers_that_are_unread_a_chance() -> None:
    bench = Bench()
    bench.start()
    bench.found()
    bench.now += 60
    bench.handle(Tick())
    assert bench.driver.state is DriverState.OPENING
    bench.opened("a")
    assert steps(bench.opened("b"))


def test_without_room_a_session_waits_holding_nothing_and_tries_again() -> None:
    bench = Bench()
    bench.start()
    bench.found()
    bench.opened("a")
    actions = bench.refuse("b", Refusal.KV_EXHAUSTED)
    assert sent(actions, "a", Close) == [Close(SESSION, 1)]
    assert bench.need.exclude == {"b"}
    bench.missing((4, 8))
    bench.missing((4, 8))
    assert bench.driver.state is DriverState.WAITING
    bench.wait(0.2)
    assert bench.need.exclude == frozenset()
    bench.found()
    bench.opened("a")
    assert steps(bench.opened("b"))


def test_a_look_that_takes_longer_than_a_peer_is_avoided_does_not_make_it_missing() -> None:
    bench = Bench()
    bench.start()
    bench.found()
    bench.refuse("b", Refusal.KV_EXHAUSTED)
    bench.missing((4, 8))
    assert bench.need.exclude == {"b"}
    bench.now += bench.driver.policy.avoid_for + 1  # the machine is busy, the directory is slow
    bench.missing((4, 8))
    assert bench.driver.state is not DriverState.DONE
    bench.wait(0.2)
    assert bench.need.exclude == frozenset()
    bench.found()
    bench.opened("a")
    assert steps(bench.opened("b"))


def wait_for_room(bench: Bench, seconds: float) -> None:
    until = bench.now + seconds
    while bench.driver.state is not DriverState.DONE and bench.now < until:
        if bench.driver.state is DriverState.ROUTING:
            bench.missing((4, 8)) if bench.need.exclude else bench.found()
        elif bench.driver.state is DriverState.OPENING:
            bench.now += 0.01
            bench.refuse("b", Refusal.KV_EXHAUSTED)
        else:
            bench.wait(0.1)


def test_a_session_that_never_gets_room_fails_with_that() -> None:
    bench = Bench()
    bench.start()
    wait_for_room(bench, 60)
    end = finish(bench.done)
    assert isinstance(end.error, KVExhausted)
    assert 130 <= bench.now < 135


def test_a_peer_that_never_has_the_room_that_the_view_shows_is_not_asked_for_ever() -> None:
    """With such pauses it is avoided no more whenever a peer is looked for."""
    bench = Bench()
    bench.driver = Driver(bench.driver.request, None, jitter=0.9)
    bench.start()
    wait_for_room(bench, 60)
    assert isinstance(finish(bench.done).error, KVExhausted)
    assert bench.now < 140


def test_no_number_of_faults_makes_a_pause_longer_than_the_longest() -> None:
    policy = DriverPolicy()
    assert policy.pause(100_000, 0.0) == policy.backoff_cap


def test_no_room_anywhere_is_waited_out_as_well() -> None:
    bench = Bench()
    bench.start()
    full = KVExhausted("all full")
    bench.missing(error=full)
    bench.missing(error=full)
    assert bench.driver.state is DriverState.WAITING
    bench.wait(0.3)
    assert steps(bench.found() and bench.opened("a") + bench.opened("b"))


def test_a_refusal_that_all_would_give_is_final() -> None:
    bench = Bench()
    bench.start()
    bench.found()
    assert isinstance(finish(bench.refuse("b", Refusal.BAD_REQUEST)).error, RequestError)


def stall(bench: Bench) -> None:
    """Let hops be silent until the session is opened anew, all of them."""
    while bench.driver.state is DriverState.RUNNING and bench.now < 200:
        bench.wait(0.1)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (lambda bench: bench.lose("b"), Cause.LOST),
        (lambda bench: bench.fail("a", Refusal.NEXT_UNREACHABLE, lost="b"), Cause.LOST),
        (stall, Cause.STALLED),
        (lambda bench: bench.fail("b", Refusal.KV_EXHAUSTED), Cause.CAPACITY),
        (lambda bench: bench.fail("b", Refusal.COMPUTE_FAILED), Cause.FAILED),
        (lambda bench: bench.fail("b", Refusal.UNKNOWN_SESSION), Cause.FAILED),
    ],
)
def test_a_repair_has_the_cause_that_it_is_for(
    fault: Callable[[Bench], object], cause: Cause
) -> None:
    bench = Bench()
    bench.run()
    bench.token(10)
    assert not bench.driver.causes
    fault(bench)
    assert (bench.driver.repairs, dict(bench.driver.causes)) == (1, {cause: 1})


def test_with_the_wrong_secret_nobody_resumes_a_session() -> None:
    bench = Bench(known_ids=(510,), epoch=3, route=ROUTE)
    bench.start()
    while bench.driver.state is not DriverState.DONE and bench.now < 130:
        if bench.driver.state is DriverState.ROUTING:
            bench.missing((4, 8)) if bench.need.exclude else bench.found(ROUTE[1:])
        elif bench.driver.state is DriverState.OPENING:
            bench.now += 0.01
            bench.refuse("b", Refusal.WRONG_SECRET)
        else:
            bench.wait(0.1)
    assert isinstance(finish(bench.done).error, SessionLost)
    assert bench.now < 103


@pytest.mark.parametrize(
    "refusal",
    [r for r in Refusal if r in LASTING],
)
def test_a_refusal_that_lasts_turns_to_other_peers(refusal: Refusal) -> None:
    bench = Bench()
    bench.start()
    bench.found()
    bench.refuse("b", refusal)
    assert bench.need.exclude == {"b"}
    bench.found(hops("a 0:4", "d 4:8"))
    bench.now += 20
    bench.lose("d")
    bench.wait(0.2)
    assert bench.need.exclude == {"b", "d"}


def test_a_hop_that_claims_to_hold_more_than_there_can_be_is_replaced() -> None:
    for claim in ({"kv_length": 16}, {"kv_length": 3, "log_start": 4}):
        bench = Bench()
        bench.start()
        bench.found()
        bench.opened("b", **claim)
        assert bench.need.exclude == {"b"}


def test_an_answer_of_a_stranger_or_of_another_epoch_is_ignored() -> None:
    bench = Bench()
    bench.start()
    bench.found()
    bench.opened("a")
    assert bench.opened("stranger") == []
    assert bench.refuse("b", Refusal.DRAINING, epoch=7) == []
    assert bench.driver.state is DriverState.OPENING


def test_an_answer_to_an_earlier_question_is_ignored() -> None:
    bench = Bench()
    bench.start()
    assert bench.handle(RouteFound(0, ROUTE)) == []
    assert bench.handle(RouteMissing(0, ((0, 8),))) == []
    assert bench.driver.state is DriverState.ROUTING


def test_a_route_with_a_hole_is_not_driven() -> None:
    bench = Bench()
    bench.start()
    end = finish(bench.found(hops("a 0:4", "b 5:8")))
    assert isinstance(end.error, CoverageError)
    assert end.error.missing == ((4, 5),)


# Resuming what another coordinator began.


def test_a_resumed_session_adopts_what_the_hops_of_its_route_hold() -> None:
    bench = Bench(known_ids=(510, 511), epoch=3, route=ROUTE)
    orders = opens(bench.start())
    assert (orders["a"].epoch, orders["a"].fresh, orders["a"].prev_peer) == (1003, False, "me")
    assert orders["b"].token_ids == (*range(10), 510, 511)
    bench.opened("a", 13)
    actions = bench.opened("b", 12)
    assert sent(actions, "a", Resume) == [Resume(SESSION, 1003, 12)]
    assert [(s.round, s.position, s.wants) for s in steps(actions)] == [(1, 11, (11,))]
    assert emitted(bench.token(12)) == [512]


@pytest.mark.parametrize(
    ("held", "again"),
    [
        ((0, 0), 11),
        ((0, 11), 11),
        ((11, 0), 11),
        ((8, 8), 3),
        ((11, 11), 0),
        ((12, 11), 1),
        ((12, 12), 1),
        ((13, 12), 2),
    ],
)
def test_what_a_resumed_session_has_computed_again_is_what_some_hop_lacks_of_it(
    held: tuple[int, int], again: int
) -> None:
    """Of its 12 ids the last is not known to have been computed; a cached prefix is held, too."""
    bench = Bench(known_ids=(510, 511), epoch=3, route=ROUTE, chunk_size=1)
    orders = opens(bench.start())
    assert [order.computed for order in orders.values()] == [11, 11]
    for peer, length in zip(("a", "b"), held, strict=True):
        bench.opened(peer, length)
    for position in range(12, 15):
        assert emitted(bench.token(position)) == [position + 500]
    assert bench.driver.recomputed == again


def test_nothing_is_computed_again_of_a_session_that_begins_with_what_others_computed() -> None:
    bench = Bench()
    bench.start()
    bench.found()
    bench.opened("a", 8)
    assert [step.position for step in steps(bench.opened("b", 8))] == [8]
    bench.token(10)
    assert (bench.driver.cached, bench.driver.recomputed) == (8, 0)


def test_a_resumed_session_does_not_turn_to_a_hop_that_has_fallen_silent() -> None:
    bench = Bench(known_ids=(510, 511), epoch=3, route=ROUTE)
    assert opens(bench.handle(Start(frozenset({"b", "other"})))) == {}
    assert (bench.need.spans, bench.need.exclude) == ((Span(4, 8),), {"a", "b"})
    assert opens(bench.found(hops("c 4:8"))).keys() == {"a", "c"}


def test_a_resumed_session_without_a_usable_route_asks_for_one() -> None:
    bench = Bench(known_ids=(510,), epoch=3, route=hops("a 0:4", "b 5:8"))
    bench.start()
    assert bench.need.spans == (Span(0, 8),)
    assert not opens(bench.found())["a"].fresh


def test_an_epoch_that_is_too_low_is_raised_above_that_of_the_hop() -> None:
    bench = Bench(known_ids=(510,), epoch=3, route=ROUTE)
    bench.start()
    bench.opened("a", 11)
    orders = opens(bench.refuse("b", Refusal.STALE_EPOCH, epoch=1009))
    assert {order.epoch for order in orders.values()} == {1010}


def test_the_epoch_of_a_later_attempt_says_that_the_client_has_left() -> None:
    bench = Bench(known_ids=(510,), epoch=3, route=ROUTE)
    bench.start()
    end = finish(bench.refuse("b", Refusal.STALE_EPOCH, epoch=3 + EPOCHS_PER_ATTEMPT + 1000))
    assert isinstance(end.error, SessionLost)


def test_a_coordinator_that_has_been_replaced_gives_up() -> None:
    bench = Bench()
    bench.run()
    bench.token(10)
    bench.fail("a", Refusal.UNKNOWN_SESSION)
    end = finish(bench.refuse("a", Refusal.STALE_EPOCH, epoch=EPOCHS_PER_ATTEMPT + 1000))
    assert isinstance(end.error, SessionLost)


def answer(hop: HopBench, order: Open) -> Opened:
    """What a hop says to an order."""
    (opened,) = frames(hop.tell(order, "me"), "me")
    assert isinstance(opened, Opened)
    return opened


def test_an_own_open_that_an_old_link_brings_late_does_not_end_the_session() -> None:
    bench, hop = Bench(), HopBench("0:4")
    bench.start()
    first = opens(bench.found())["a"]
    assert answer(hop, first).refusal is None
    bench.opened("a")
    bench.opened("b")
    bench.token(10)
    second = opens(bench.fail("b", Refusal.UNKNOWN_SESSION))["a"]
    assert answer(hop, second).refusal is None  # which is lost with its link
    late = answer(hop, first)
    assert (late.refusal, late.epoch) == (Refusal.STALE_EPOCH, 2)
    assert finish(bench.tell("a", late)) is None
    assert opens(bench.wait(0.1))["a"].epoch == 3
    bench.opened("a", 10)
    bench.opened("b", 10)
    assert emitted(bench.token(11)) == [511]


@pytest.mark.parametrize("known", [(1, 2, 3, 4, 5), (1, 7)])
def test_a_resumed_session_that_is_complete_ends_at_once(known: tuple[int, ...]) -> None:
    bench = Bench(known_ids=known, epoch=3, stop_ids=frozenset({7}))
    (end,) = bench.start()
    assert end.reason == ("stop" if known[-1] == 7 else "length")


# The table of states.


EVENTS = [
    Start(),
    Stop(),
    Tick(),
    PeerLost("stranger"),
    RoutesChanged(),
    RouteFound(0, ()),
    RouteMissing(0, ()),
]


@pytest.mark.parametrize("state", DriverState)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_that_is_not_in_the_table_is_an_error(state: DriverState, event: Any) -> None:
    bench = Bench()
    bench.run()
    bench.driver.state = state
    if type(event) in DRIVER_TABLE[state]:
        bench.handle(event)
    else:
        with pytest.raises(SessionError, match=f"{type(event).__name__} when {state.value}"):
            bench.handle(event)


@pytest.mark.parametrize("state", DriverState)
def test_no_frame_of_a_stranger_is_an_error_in_any_state(state: DriverState) -> None:
    bench = Bench()
    bench.run()
    bench.driver.state = state
    bench.opened("stranger")
    bench.token(10, "stranger")
    bench.gap("stranger", 0)
    bench.fail("stranger", Refusal.BAD_STEP)
    assert bench.driver.state is state
    assert not [a for a in bench.done if isinstance(a, Send) and a.peer_id == "stranger"]
