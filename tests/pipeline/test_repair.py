"""What a driver does when hops are lost, refuse, or are behind."""

from __future__ import annotations

from typing import Any

import pytest
from bench_driver import SESSION, Bench, emitted, finish, hops, opens, sent, steps
from hypothesis import given
from hypothesis import strategies as st

from swarmd.core.errors import CoverageError, SessionError
from swarmd.core.frames import Close, Failed, Gap, Keep, Poll, Polled, Refusal, Resume
from swarmd.core.span import Span
from swarmd.pipeline.driver import DriverState
from swarmd.pipeline.events import RoutesChanged
from swarmd.pipeline.policy import DriverPolicy
from swarmd.pipeline.repair import Held, lost_spans, plan, splice, suspect
from swarmd.pipeline.steps import ChunkPlan

THREE = hops("a 0:2", "b 2:5", "c 5:8")


def running(bench: Bench, route: tuple = THREE) -> Bench:
    """Bring a session to where three tokens have come: positions 0 to 12 have been sent."""
    bench.run(route)
    for position in range(10, 13):
        bench.token(position, route[-1].peer_id)
    return bench


def test_only_the_lost_hop_is_replaced() -> None:
    bench = running(Bench())
    bench.lose("b")
    need = bench.need
    assert need.spans == (Span(2, 5),)
    assert need.keep == hops("a 0:2", "c 5:8")
    assert need.exclude == {"a", "b", "c"}
    orders = opens(bench.found(hops("x 2:3", "y 3:5")))
    assert list(orders) == ["a", "x", "y", "c"]
    assert {(order.epoch, order.fresh) for order in orders.values()} == {(2, False)}
    assert (orders["a"].next_peer, orders["c"].prev_peer) == ("x", "y")
    assert orders["c"].token_ids == (*range(10), 510, 511, 512)
    assert bench.driver.repairs == 1


def test_the_new_hop_is_fed_from_the_log_before_it_and_the_last_token_is_drawn_again() -> None:
    bench = running(Bench())
    bench.lose("b")
    bench.found(hops("x 2:5"))
    bench.opened("a", 13)
    bench.opened("x", 0)
    actions = bench.opened("c", 12)
    assert sent(actions, "a", Resume) == [Resume(SESSION, 2, 0)]
    assert sent(actions, "x", Resume) == [Resume(SESSION, 2, 12)]
    assert [(s.round, s.position, s.chunks, s.wants) for s in steps(actions)] == [
        (1, 12, (1,), (12,))
    ]
    assert emitted(bench.token(13, "c")) == [513]


def test_a_new_first_hop_is_fed_the_ids_in_the_chunks_of_before() -> None:
    bench = running(Bench(DriverPolicy(replay_step=2)))
    bench.lose("a")
    bench.found(hops("x 0:2"))
    bench.opened("b", 13)
    bench.opened("c", 13)
    actions = bench.opened("x", 0)
    assert [(s.round, s.position, s.chunks, s.wants) for s in steps(actions, "x")] == [
        (0, 0, (4,), ()),
        (0, 4, (4,), ()),
        (0, 8, (2,), ()),
        (0, 10, (1, 1), ()),
        (1, 12, (1,), (12,)),
    ]
    assert sent(actions, "x", Resume) == [Resume(SESSION, 2, 13)]


def test_a_new_first_hop_gets_what_nobody_waits_for_in_few_steps_and_the_rest_chunk_by_chunk() -> (
    None
):
    bench = running(Bench(DriverPolicy(replay_step=8)))
    bench.lose("a")
    bench.found(hops("x 0:2"))
    bench.opened("b", 8)
    bench.opened("c", 8)
    actions = bench.opened("x", 0)
    assert [(s.round, s.position, s.chunks) for s in steps(actions, "x")] == [
        (0, 0, (4, 4)),
        (1, 8, (2,)),
        (1, 10, (1, 1, 1)),
    ]
    bench = running(Bench(DriverPolicy(replay_step=8)))
    bench.lose("a")
    bench.found(hops("x 0:2"))
    bench.opened("b", 4)
    bench.opened("c", 12)
    actions = bench.opened("x", 0)
    assert [(s.round, s.position, s.chunks) for s in steps(actions, "x")] == [
        (0, 0, (4,)),
        (0, 4, (4,)),  # the next hop lacks it
        (0, 8, (2,)),
        (0, 10, (1, 1)),
        (1, 12, (1,)),
    ]


def test_where_the_log_does_not_reach_back_the_ids_go_through_all_hops_again() -> None:
    bench = running(Bench())
    bench.lose("b")
    bench.found(hops("x 2:5"))
    bench.opened("a", 13, log_start=6)
    bench.opened("x", 0)
    actions = bench.opened("c", 13)
    assert [(s.round, s.position, s.chunks) for s in steps(actions)] == [
        (1, 0, (4,)),
        (1, 4, (4,)),
        (1, 8, (2,)),
        (1, 10, (1, 1, 1)),
    ]


def test_a_gap_makes_all_begin_again_where_it_is() -> None:
    bench = running(Bench())
    actions = bench.gap("b", 5)
    assert [(s.round, s.position, s.chunks) for s in steps(actions)] == [
        (1, 4, (4,)),
        (1, 8, (2,)),
        (1, 10, (1, 1, 1)),
    ]
    assert bench.tell("b", Gap(SESSION, 1, 0, 0)) == []
    assert emitted(bench.token(13, "c")) == [513]


def test_a_hop_that_reports_gap_after_gap_does_not_keep_a_session_for_ever() -> None:
    bench = running(Bench(DriverPolicy(repair_budget=3)))
    for _ in range(3):
        assert finish(bench.gap("b", 5)) is None
    assert isinstance(finish(bench.gap("b", 5)).error, SessionError)


def test_a_second_loss_during_a_repair_makes_a_further_epoch() -> None:
    bench = running(Bench())
    bench.lose("b")
    bench.found(hops("x 2:5"))
    bench.lose("x")
    bench.wait(0.06)
    assert bench.need.exclude == {"a", "b", "c", "x"}
    assert {order.epoch for order in opens(bench.found(hops("y 2:5"))).values()} == {3}


def test_a_loss_while_a_route_is_sought_asks_anew() -> None:
    bench = running(Bench())
    bench.lose("b")
    first = bench.need
    bench.lose("c")
    assert bench.need.ask == first.ask + 1
    assert bench.need.spans == (Span(2, 8),)


def test_a_loss_while_waiting_is_remembered() -> None:
    bench = running(Bench())
    bench.lose("b")
    bench.missing((2, 5))
    bench.missing((2, 5))
    bench.wait(0.11)
    bench.missing((2, 5))
    assert bench.driver.state is DriverState.WAITING
    bench.lose("c")
    bench.wait(0.3)
    assert bench.need.spans == (Span(2, 8),)


def test_the_loss_of_a_peer_that_has_no_part_any_more_changes_nothing() -> None:
    bench = running(Bench())
    bench.lose("b")
    bench.found(hops("x 2:5"))
    assert bench.lose("b") == []
    assert bench.driver.state is DriverState.OPENING


def test_peers_that_have_a_part_already_take_more_blocks_only_when_nobody_else_can() -> None:
    bench = running(Bench())
    bench.lose("b")
    bench.missing((2, 5))
    assert bench.need.exclude == {"b"}
    orders = opens(bench.found(hops("a 2:5")))
    assert {peer: order.blocks for peer, order in orders.items()} == {
        "a": Span(0, 5),
        "c": Span(5, 8),
    }


def test_a_hop_that_has_no_part_any_more_is_closed() -> None:
    bench = running(Bench())
    bench.lose("b")
    bench.missing((2, 5))
    actions = bench.found(hops("c 2:5"))
    assert {peer: order.blocks for peer, order in opens(actions).items()} == {
        "a": Span(0, 2),
        "c": Span(2, 8),
    }
    assert sent(actions, "b", Close) == [Close(SESSION, 1)]


def test_a_hop_that_another_cannot_reach_is_replaced() -> None:
    bench = running(Bench())
    bench.fail("a", Refusal.NEXT_UNREACHABLE, lost="b")
    assert bench.need.spans == (Span(2, 5),)


def test_a_failure_of_an_earlier_epoch_or_about_a_stranger_is_ignored() -> None:
    bench = running(Bench())
    assert bench.fail("a", Refusal.NEXT_UNREACHABLE, lost="stranger") == []
    bench.lose("b")
    bench.found(hops("x 2:5"))
    assert bench.tell("a", Failed(SESSION, 1, Refusal.COMPUTE_FAILED)) == []


def test_a_hop_that_forgot_the_session_is_opened_again() -> None:
    bench = running(Bench())
    orders = opens(bench.fail("a", Refusal.UNKNOWN_SESSION, lost="b"))
    assert list(orders) == ["a", "b", "c"]


def test_silence_opens_all_hops_again_and_then_replaces_the_one_that_holds_things_up() -> None:
    bench = running(Bench())
    orders = opens(bench.wait(21.7))
    assert list(orders) == ["a", "b", "c"]
    bench.opened("a", 13)
    bench.opened("b", 13)
    bench.opened("c", 12)
    bench.wait(21.7)
    assert bench.need.spans == (Span(2, 5),)


def test_the_time_allowed_grows_with_the_positions_under_way() -> None:
    bench = Bench(DriverPolicy(step_timeout=1.0, position_timeout=1.0))
    bench.run()
    assert opens(bench.wait(10.9 + bench.driver.policy.open_timeout)) == {}
    assert list(opens(bench.wait(0.2))) == ["a", "b"]


def asked_and_answered(bench: Bench, seconds: float = 20.2, **answer: Any) -> None:
    """Wait until the hops are asked what keeps them; one of them answers."""
    actions = bench.wait(seconds)
    assert all(sent(actions, peer, Poll) for peer in "abc")
    values = {"accepted": 14, "computed": 13, "waits": True, "busy_us": 800_000, **answer}
    bench.tell("b", Polled(SESSION, bench.driver.epoch, **values))


def test_a_prompt_in_a_long_line_is_waited_for_as_long_as_the_stage_works() -> None:
    bench = running(Bench())
    asked_and_answered(bench)
    for _ in range(20):
        assert opens(bench.wait(1.5)) == {}
        asked_and_answered(bench, 20.0)
    bench.token(13, "c")
    assert bench.driver.repairs == 0


@pytest.mark.parametrize(
    "answer",
    [
        {"computed": 14},  # all is done there: what went on from it is lost
        {"busy_us": 0},  # nothing is computed, and yet it waits
        {"busy_us": 21_000_000},  # one step takes longer than any should
    ],
)
def test_a_hop_that_does_not_work_on_it_does_not_prolong_the_time(answer: dict[str, Any]) -> None:
    bench = running(Bench())
    asked_and_answered(bench, **answer)
    assert list(opens(bench.wait(1.5))) == ["a", "b", "c"]


def test_an_answer_from_before_counts_once() -> None:
    bench = running(Bench())
    asked_and_answered(bench)
    bench.wait(1.5)
    assert opens(bench.wait(20.2)) == {}
    assert list(opens(bench.wait(1.5))) == ["a", "b", "c"]


def test_each_answer_prolongs_the_time() -> None:
    bench = running(Bench())
    bench.wait(19)
    bench.token(13, "c")
    assert opens(bench.wait(19)) == {}


# Waiting for a peer to come.


def wait_for_peers(bench: Bench, seconds: float) -> list:
    until, start = bench.now + seconds, len(bench.done)
    while bench.now < until and bench.driver.state is not DriverState.DONE:
        if bench.driver.state is DriverState.ROUTING:
            bench.missing((2, 5))
        else:
            bench.wait(0.05)
    return bench.done[start:]


def test_a_running_session_waits_for_a_peer_and_keeps_what_survives_alive() -> None:
    bench = running(Bench())
    bench.lose("b")
    actions = wait_for_peers(bench, 29)
    assert finish(actions) is None
    assert len(sent(actions, "a", Keep)) >= 10
    assert sent(actions, "b", Keep) == []
    bench.wait(0.3)
    assert "x" in opens(bench.found(hops("x 2:5")))


def test_after_the_gap_wait_it_fails_with_the_missing_blocks() -> None:
    bench = running(Bench())
    bench.lose("b")
    lost_at = bench.now
    end = finish(wait_for_peers(bench, 40))
    assert isinstance(end.error, CoverageError)
    assert end.error.missing == ((2, 5),)
    assert 30 <= bench.now - lost_at < 31


def test_news_of_a_peer_ends_the_wait() -> None:
    bench = running(Bench())
    bench.lose("b")
    wait_for_peers(bench, 5)
    bench.wait(1e-3)
    if bench.driver.state is DriverState.ROUTING:
        bench.missing((2, 5))
        bench.missing((2, 5))
        bench.missing((2, 5))
    asked = bench.need.ask
    bench.handle(RoutesChanged())
    assert bench.need.ask == asked + 1


def test_repairs_without_progress_come_to_an_end() -> None:
    bench = running(Bench(DriverPolicy(repair_budget=5)))
    epochs = bench.driver.epoch
    while bench.driver.state is not DriverState.DONE:
        if bench.driver.state is DriverState.ROUTING:
            bench.found(hops(f"x{bench.driver.epoch} 2:5"))
        elif bench.driver.state is DriverState.OPENING:
            bench.fail(bench.driver.route[1].peer_id, Refusal.COMPUTE_FAILED)
        elif bench.driver.state is DriverState.RUNNING:
            bench.lose("b")
        else:
            bench.wait(0.1)
    assert bench.driver.epoch == epochs + 5
    assert isinstance(finish(bench.done).error, SessionError)


def test_pauses_grow_up_to_a_limit_and_are_spread() -> None:
    policy = DriverPolicy(backoff=0.1, backoff_cap=1.0)
    assert [policy.pause(n, 0.0) for n in range(7)] == [0, 0, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert policy.pause(3, 0.5) == pytest.approx(0.3)


# The pure parts.


def test_lost_neighbours_are_one_hole() -> None:
    route = hops("a 0:2", "b 2:5", "c 5:6", "d 6:8")
    assert lost_spans(route, {"b", "c"}) == (Span(2, 6),)
    assert lost_spans(route, {"a", "c"}) == (Span(0, 2), Span(5, 6))
    assert lost_spans(route, set()) == ()


def test_a_peer_that_comes_up_twice_takes_all_between() -> None:
    kept = hops("a 0:2", "c 5:6", "d 6:8")
    assert splice(kept, hops("x 2:3", "a 3:5")) == hops("a 0:5", "c 5:6", "d 6:8")
    assert splice(kept, hops("d 2:5")) == hops("a 0:2", "d 2:8")


def test_the_suspect_is_the_first_hop_ahead_of_the_next() -> None:
    assert suspect([9, 9, 4, 4]) == 1
    assert suspect([9, 9, 9]) == 2


lengths = st.integers(0, 30)


@st.composite
def held_hops(draw: st.DrawFn) -> list[Held]:
    hops = []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(lengths)
        hops.append(Held(length, draw(st.integers(0, length)), draw(st.booleans())))
    return hops


@given(held_hops(), st.integers(0, 30), st.integers(1, 8), st.integers(1, 30))
def test_after_a_repair_every_hop_holds_what_the_rewind_builds_on(
    held: list[Held], last: int, chunk: int, prompt: int
) -> None:
    chunks = ChunkPlan(prompt, chunk)
    last = chunks.floor(last)
    made = plan(held, last, chunks)
    assert 0 <= made.feed_from <= made.rewind_to <= last
    assert chunks.floor(made.rewind_to) == made.rewind_to
    has = max(held[0].kv_length, made.rewind_to)
    assert made.feed_from <= held[0].kv_length
    for before, hop, send_from in zip(held, held[1:], made.send_from, strict=False):
        if send_from <= hop.kv_length and before.log_start <= send_from:
            has = max(hop.kv_length, has)
        else:
            has = hop.kv_length
        assert has >= made.rewind_to, "this hop would have a gap"
    for hop in held:
        if not hop.chunk_exact and hop.kv_length < made.rewind_to:
            assert chunks.floor(hop.kv_length) == hop.kv_length, "it would begin within a chunk"


@pytest.mark.parametrize(("exact", "again"), [(True, 39), (False, 21)])
def test_a_copy_that_holds_a_part_of_a_chunk_computes_the_whole_of_it(
    exact: bool, again: int
) -> None:
    """KV comes in pieces of any length, of which a hop that died has sent 22 positions."""
    held = [Held(22, 22, exact), Held(36, 36, exact), Held(39, 0, exact)]
    made = plan(held, 45, ChunkPlan(46, 3))
    assert made.rewind_to == again
    assert made.feed_from == min(22, again)


@given(held_hops(), st.integers(0, 30))
def test_with_whole_logs_only_the_last_chunk_is_computed_again(held: list[Held], last: int) -> None:
    whole = [Held(hop.kv_length, 0) for hop in held]
    chunks = ChunkPlan(1, 1)
    reached = max(hop.kv_length for hop in held)
    assert plan(whole, last, chunks).rewind_to == min(last, reached)
