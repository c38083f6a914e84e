"""Who may open a session on a hop, how long it lasts, and that its KV comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from bench_hop import SECRET, SESSION, Bench, frames, only

from swarmd.core.frames import Close, Keep, Leaving, Refusal, Resume
from swarmd.core.span import Span
from swarmd.pipeline.events import Drain, Free, Submit
from swarmd.pipeline.hop import HopPolicy

OTHER = b"o" * 16


def test_an_open_reserves_kv_for_its_positions_and_blocks() -> None:
    bench = Bench()
    answer = bench.open(blocks=Span(2, 3))
    assert (answer.refusal, answer.epoch, answer.kv_length) == (None, 1, 0)
    assert bench.account.reserved == {SESSION: 100}
    assert answer.kv_free_bytes == 9_900


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        ({"model_digest": "cd" * 32}, Refusal.WRONG_MODEL),
        ({"blocks": Span(1, 4)}, Refusal.WRONG_BLOCKS),
        ({"blocks": Span(2, 5)}, Refusal.WRONG_BLOCKS),
        ({"next_peer": ""}, Refusal.BAD_REQUEST),
        ({"max_positions": 513}, Refusal.TOO_LONG),
    ],
)
def test_an_open_that_this_stage_cannot_serve_is_refused(
    wrong: dict[str, Any], refusal: Refusal
) -> None:
    bench = Bench()
    assert bench.open(**wrong).refusal is refusal
    assert bench.table.sessions == {}
    assert bench.account.reserved == {}


def test_the_last_hop_needs_sampling_parameters_and_no_next_hop() -> None:
    assert Bench("4:8").open(sampling=None).refusal is Refusal.BAD_REQUEST
    assert Bench("4:8").open(next_peer="after").refusal is Refusal.BAD_REQUEST


def test_kv_that_is_in_use_may_come_free_but_kv_that_never_was_there_does_not() -> None:
    bench = Bench()
    bench.account.total = 300
    bench.open()
    refused = bench.open(session=OTHER)
    assert refused.refusal is Refusal.KV_EXHAUSTED
    assert "100 bytes are free" in refused.message
    assert bench.open(session=OTHER, max_positions=200).refusal is Refusal.TOO_LONG
    bench.tell(Close(SESSION, 1))
    assert bench.open(session=OTHER).refusal is None


def test_there_is_a_limit_to_the_number_of_sessions() -> None:
    bench = Bench(policy=HopPolicy(max_sessions=1))
    bench.open()
    assert bench.open(session=OTHER).refusal is Refusal.KV_EXHAUSTED
    assert bench.open(epoch=2, fresh=False).refusal is None


def test_a_draining_hop_takes_no_new_sessions_but_goes_on_with_its_own() -> None:
    bench = Bench()
    bench.open()
    bench.handle(Drain())
    assert bench.open(session=OTHER).refusal is Refusal.DRAINING
    assert bench.open(epoch=2, fresh=False).refusal is None


def test_a_hop_that_stays_after_all_takes_back_what_it_said() -> None:
    bench = Bench()
    bench.open()
    assert not bench.handle(Drain(on=False)), "it has said nothing"
    (going,) = frames(bench.handle(Drain()), "boss")
    assert isinstance(going, Leaving)
    assert (going.epoch, going.stays) == (1, False)
    told = frames(bench.tell(replace(bench.order, epoch=2, fresh=False)), "boss")
    assert [f.epoch for f in told if isinstance(f, Leaving)] == [2], "once more in a new epoch"
    (staying,) = frames(bench.handle(Drain(on=False)), "boss")
    assert isinstance(staying, Leaving)
    assert (staying.epoch, staying.stays) == (2, True)
    assert staying.decision > going.decision
    told = frames(bench.tell(replace(bench.order, epoch=3, fresh=False)), "boss")
    assert not [f for f in told if isinstance(f, Leaving)]


def test_without_the_secret_nobody_takes_a_session_over() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    assert bench.open("thief", epoch=9, secret=b"x" * 16).refusal is Refusal.WRONG_SECRET
    assert bench.table.sessions[SESSION].coordinator == "boss"
    assert bench.open("heir", epoch=2, fresh=False, secret=SECRET).kv_length == 4
    assert bench.table.sessions[SESSION].coordinator == "heir"


@pytest.mark.parametrize("epoch", [3, 4])
def test_an_epoch_that_is_not_later_is_refused_with_the_present_one(epoch: int) -> None:
    bench = Bench()
    bench.open(epoch=4)
    answer = bench.open("zombie", epoch=epoch, fresh=False)
    assert (answer.refusal, answer.epoch) == (Refusal.STALE_EPOCH, 4)
    assert bench.table.sessions[SESSION].coordinator == "boss"


def test_a_coordinator_that_repeats_its_open_gets_the_same_answer() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    again = bench.open()
    assert (again.refusal, again.kv_length) == (None, 4)
    assert only(bench.step(4), Submit)


def test_kv_of_other_blocks_is_of_no_use() -> None:
    bench = Bench("2:5")
    bench.open(blocks=Span(2, 4))
    bench.apply(0, 4)
    assert bench.open(epoch=2, fresh=False, blocks=Span(2, 5)).kv_length == 0
    assert bench.account.reserved == {SESSION: 300}


def test_a_fresh_session_takes_nothing_over() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    assert bench.open(epoch=2, fresh=True).kv_length == 0


# How long it lasts.


def test_a_reservation_that_is_not_used_lapses() -> None:
    bench = Bench()
    bench.open()
    assert bench.table.next_deadline() == 5.0
    assert bench.tick(4.9) == []
    assert only(bench.tick(5.0), Free)
    assert bench.account.reserved == {}
    assert bench.counters.lapsed == 1
    assert bench.table.next_deadline() is None


@pytest.mark.parametrize("sign", ["step", "keep", "resume"])
def test_a_session_that_is_used_does_not_lapse(sign: str) -> None:
    bench = Bench()
    bench.open(fresh=sign != "resume")
    bench.now = 4.0
    if sign == "step":
        bench.step(0)
    elif sign == "keep":
        bench.tell(Keep((OTHER, SESSION)))
    else:
        bench.tell(Resume(SESSION, 1, 0))
    assert bench.tick(6.0) == []
    assert bench.table.next_deadline() == pytest.approx(10.0 if sign == "step" else 14.0)


def test_kv_that_holds_something_does_not_lapse_while_a_repair_takes_its_time() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    bench.open(epoch=2, fresh=False)
    assert bench.tick(9.9) == []
    assert only(bench.tick(10.0), Free)


def test_a_session_whose_coordinator_is_silent_is_freed_after_its_grace() -> None:
    bench = Bench(policy=HopPolicy(orphan_grace=3.0))
    bench.open()
    bench.apply(0, 4)
    for now in (2.0, 4.0):
        bench.now = now
        bench.tell(Keep((SESSION,)))
    assert bench.tick(6.9) == []
    assert only(bench.tick(7.0), Free)
    assert bench.counters.orphaned == 1


def test_only_the_coordinator_keeps_a_session_alive() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    bench.now = 9.0
    bench.tell(Keep((SESSION,)), "before")
    bench.step(4)
    assert only(bench.tick(10.0), Free)


def test_a_step_that_asks_for_a_token_says_that_the_coordinator_lives() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4, wants=(3,))
    bench.now = 9.0
    bench.step(4, wants=(4,))
    bench.now = 12.0
    bench.step(4, wants=(4,))  # nothing new
    assert bench.tick(18.9) == []
    assert only(bench.tick(19.0), Free)


def test_a_close_frees_the_session() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    assert only(bench.tell(Close(SESSION, 1)), Free)
    assert bench.account.reserved == {}
    assert bench.table.budget.used == 0
    assert bench.tell(Close(SESSION, 1)) == []


def test_a_close_by_somebody_else_or_of_an_earlier_epoch_does_nothing() -> None:
    bench = Bench()
    bench.open()
    bench.open("heir", epoch=2, fresh=False)
    assert bench.tell(Close(SESSION, 9), "boss") == []
    assert bench.tell(Close(SESSION, 1), "heir") == []
    assert only(bench.tell(Close(SESSION, 2), "heir"), Free)
