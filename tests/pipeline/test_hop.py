"""The rules by which a hop takes steps, sends outputs on, and starts new rounds and epochs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_hop import (
    MODEL,
    SESSION,
    Bench,
    failures,
    frames,
    hidden,
    numbers,
    only,
    steps,
    tokens,
)

from swarmd.core.errors import SessionError
from swarmd.core.frames import Close, Failed, Gap, Refusal, Resume, Step
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.pipeline import hop_values
from swarmd.pipeline.events import Computed, ComputeFailed, Drawn, Free, Submit, Truncate
from swarmd.pipeline.hop import HopPolicy
from swarmd.pipeline.hop_session import HOP_TRANSITIONS, HopInput, HopSession, HopState
from swarmd.pipeline.replay_log import ReplayBudget, ReplayLog


def test_a_step_is_computed_and_its_output_goes_on_with_the_same_positions_and_chunks() -> None:
    bench = Bench()
    bench.open()
    submit = only(bench.step(0, 4, wants=(3,)), Submit)
    (onward,) = steps(bench.compute(submit))
    assert (onward.position, onward.chunks, onward.wants) == (0, (4,), (3,))
    assert numbers(onward.hidden) == [1000, 1001, 1002, 1003]
    assert onward.token_ids == ()


def test_the_last_hop_sends_tokens_to_the_coordinator() -> None:
    bench = Bench("4:8")
    bench.open()
    done = bench.apply(0, 10, wants=(9,))
    (token,) = tokens(done)
    assert (token.position, token.id, token.epoch, token.round) == (10, 509, 1, 0)


def test_a_duplicate_is_dropped() -> None:
    bench = Bench()
    bench.open()
    bench.step(0, 4)
    assert bench.step(0, 4) == []
    assert bench.counters.duplicates == 1


def test_of_a_step_that_overlaps_only_the_new_part_is_computed() -> None:
    bench = Bench()
    bench.open()
    bench.step(0, 4)
    submit = only(bench.step(2, 5, wants=(3, 6)), Submit)
    assert (submit.step.position, submit.step.chunks, submit.step.wants) == (4, (3,), (6,))
    assert numbers(submit.step.hidden) == [4, 5, 6]


def test_a_gap_is_told_to_the_coordinator_once_per_round() -> None:
    bench = Bench()
    bench.open()
    bench.step(0, 4)
    assert frames(bench.step(9), "boss") == [Gap(SESSION, 1, 0, 4)]
    assert bench.step(10) == []
    assert bench.counters.gaps == 2
    assert frames(bench.step(11, round=1), "boss") == [Gap(SESSION, 1, 1, 4)]


def test_a_step_of_another_epoch_is_dropped() -> None:
    bench = Bench()
    bench.open()
    bench.open(epoch=2, fresh=False)
    assert bench.step(0, epoch=1) == []
    assert bench.step(0, epoch=3) == []
    assert bench.counters.stale_epochs == 2
    assert only(bench.step(0, epoch=2), Submit)


def test_a_step_of_an_older_round_is_dropped() -> None:
    bench = Bench()
    bench.open()
    bench.step(0, 4)
    bench.step(4, round=2)
    assert bench.step(5, round=1) == []
    assert bench.counters.stale_rounds == 1


def test_a_step_of_somebody_else_is_dropped() -> None:
    bench = Bench()
    bench.open()
    for sender in ("stranger", "boss", "after"):
        assert bench.step(0, sender=sender) == []
    assert bench.counters.wrong_sender == 3
    assert only(bench.step(0), Submit)


def test_the_sender_of_a_step_for_an_unknown_session_is_told_and_tells_the_coordinator() -> None:
    bench = Bench()
    (failed,) = failures(bench.step(0, epoch=7), "before")
    assert (failed.refusal, failed.epoch) == (Refusal.UNKNOWN_SESSION, 7)
    bench.open(epoch=7)
    told = bench.tell(failed, "after")
    assert failures(told) == [replace(failed, lost_peer="after")]
    assert bench.tell(failed, "stranger") == []
    assert bench.tell(replace(failed, epoch=6), "after") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunks": ()},
        {"chunks": (0,)},
        {"hidden": None},
        {"hidden": hidden(0, 3)},
        {"wants": (4,)},
        {"position": 98},
    ],
)
def test_a_step_that_does_not_fit_fails_the_epoch_and_changes_nothing(wrong: dict) -> None:
    bench = Bench()
    bench.open()
    good = Step(SESSION, 1, 0, 0, (4,), hidden=hidden(0, 4))
    (failed,) = failures(bench.tell(replace(good, **wrong), "before"))
    assert failed.refusal is Refusal.BAD_STEP
    assert only(bench.tell(good, "before"), Submit)


def test_a_step_whose_output_no_frame_holds_is_refused_where_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hop_values, "MAX_STEP_BYTES", 3 * 4 * MODEL.hidden_size)
    first = Bench("0:4")
    first.open()
    (failed,) = failures(first.tell(Step(SESSION, 1, 0, 0, (4,), token_ids=(1, 2, 3, 4))))
    assert failed.refusal is Refusal.BAD_STEP
    assert "3 do" in failed.message
    assert only(first.tell(Step(SESSION, 1, 0, 0, (3,), token_ids=(1, 2, 3))), Submit)
    alone = Bench("0:8")
    alone.open()
    assert only(alone.tell(Step(SESSION, 1, 0, 0, (4,), token_ids=(1, 2, 3, 4))), Submit)


def test_the_first_hop_takes_ids_of_the_vocabulary_only() -> None:
    bench = Bench("0:4")
    bench.open()
    good = Step(SESSION, 1, 0, 0, (2,), token_ids=(1, 2))
    for wrong in (
        replace(good, token_ids=(1,)),
        replace(good, token_ids=(1, MODEL.vocab_size)),
        replace(good, token_ids=(), hidden=hidden(0, 2)),
    ):
        assert failures(bench.tell(wrong))[0].refusal is Refusal.BAD_STEP
    assert only(bench.tell(good), Submit)


def test_no_more_steps_wait_than_the_limit_allows() -> None:
    bench = Bench(policy=HopPolicy(max_queued_steps=3))
    bench.open()
    for position in range(3):
        assert only(bench.step(position), Submit)
    assert failures(bench.step(3))[0].refusal is Refusal.BAD_STEP


# Rounds.


def test_a_new_round_cuts_the_kv_to_its_first_position() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 8)
    actions = bench.step(5, round=1)
    assert [type(action) for action in actions] == [Truncate, Submit]
    assert actions[0] == Truncate(SESSION, 5)
    assert bench.counters.recomputed_positions == 3


def test_a_hop_that_takes_another_ones_place_counts_what_that_one_had_computed() -> None:
    bench = Bench()
    bench.open(epoch=2, fresh=False, computed=6)
    bench.apply(0, 4, epoch=2)
    assert bench.counters.recomputed_positions == 4
    bench.apply(4, 4, epoch=2)
    assert bench.counters.recomputed_positions == 6, "the last two are new"
    bench.step(4, epoch=2, round=1)
    assert bench.counters.recomputed_positions == 10, "those that were given up, once"


def test_who_holds_a_session_already_counts_only_what_it_gives_up() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    bench.open(epoch=2, fresh=False, computed=8)
    bench.apply(4, 4, epoch=2)
    assert bench.counters.recomputed_positions == 0, "that had not come here"


def test_what_is_being_computed_above_the_cut_has_no_effect_any_more() -> None:
    bench = Bench()
    bench.open()
    first, second = only(bench.step(0, 4), Submit), only(bench.step(4, 4), Submit)
    bench.step(2, round=1)
    (onward,) = steps(bench.compute(first))
    assert (onward.position, onward.chunks, onward.round) == (0, (2,), 0)
    assert numbers(onward.hidden) == [1000, 1001]
    assert bench.compute(second) == []


def test_tokens_drawn_above_the_cut_are_not_sent() -> None:
    bench = Bench("4:8")
    bench.open()
    submit = only(bench.step(0, 10, wants=(4, 9)), Submit)
    bench.step(5, round=1)
    assert [token.position for token in tokens(bench.compute(submit))] == [5]


def test_a_new_round_at_the_end_cuts_nothing() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    assert [type(action) for action in bench.step(4, round=1)] == [Submit]
    assert bench.counters.recomputed_positions == 0


def test_a_stage_that_cannot_rewind_starts_over() -> None:
    bench = Bench(rewinds=False)
    bench.open()
    bench.apply(0, 8)
    actions = bench.step(7, round=1)
    assert only(actions, Truncate) == Truncate(SESSION, 0)
    assert frames(actions, "boss") == [Gap(SESSION, 1, 1, 0)]
    assert only(bench.step(0, 4, round=2), Submit)


# Epochs.


def test_a_new_epoch_adopts_what_is_held_and_holds_its_outputs_back() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    late = only(bench.step(4, 2), Submit)
    answer = bench.open("boss2", epoch=2, fresh=False, next_peer="after2")
    assert (answer.refusal, answer.kv_length, answer.log_start) == (None, 6, 0)
    assert bench.compute(late) == []
    sent = frames(bench.tell(Resume(SESSION, 2, 3), "boss2"), "after2")
    assert [(step.epoch, step.round, step.position, step.chunks) for step in sent] == [
        (2, 0, 3, (1, 2))
    ]
    assert numbers(sent[0].hidden) == [1003, 1004, 1005]
    assert bench.counters.replayed_positions == 3


def test_outputs_below_what_the_next_hop_has_are_logged_and_not_sent() -> None:
    bench = Bench()
    bench.open(epoch=5, fresh=False)
    bench.tell(Resume(SESSION, 5, 6))
    assert steps(bench.apply(0, 4, epoch=5)) == []
    (onward,) = steps(bench.apply(4, 4, epoch=5))
    assert (onward.position, onward.chunks) == (6, (2,))
    assert bench.open(epoch=6, fresh=False).log_start == 0
    (replayed,) = steps(bench.tell(Resume(SESSION, 6, 0)))
    assert (replayed.position, replayed.chunks) == (0, (4, 4))


def test_a_rewind_sends_again_what_the_next_hop_had() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 8)
    bench.open(epoch=2, fresh=False)
    bench.tell(Resume(SESSION, 2, 8))
    (onward,) = steps(bench.apply(7, epoch=2, round=1))
    assert (onward.position, onward.round) == (7, 1)


def test_a_rewind_that_overtakes_the_resume_is_not_forgotten() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 8)
    bench.open(epoch=2, fresh=False)
    assert steps(bench.apply(7, epoch=2, round=1)) == []
    (onward,) = steps(bench.tell(Resume(SESSION, 2, 8)))
    assert (onward.position, onward.round) == (7, 1)


def test_a_replay_keeps_the_round_of_each_step_and_joins_only_within_it() -> None:
    bench = Bench()
    bench.open(epoch=2, fresh=False)
    bench.apply(0, 4, epoch=2)
    bench.apply(4, 1, epoch=2)
    bench.apply(3, 1, epoch=2, round=1)
    sent = steps(bench.tell(Resume(SESSION, 2, 0)))
    assert [(step.round, step.position, step.chunks) for step in sent] == [
        (0, 0, (3,)),
        (1, 3, (1,)),
    ]


def test_a_replayed_step_holds_no_more_positions_than_the_limit_allows() -> None:
    bench = Bench(policy=HopPolicy(replay_step=4))
    bench.open()
    for position in range(10):
        bench.apply(position)
    bench.open(epoch=2, fresh=False)
    sent = steps(bench.tell(Resume(SESSION, 2, 0)))
    assert [step.chunks for step in sent] == [(1,) * 4, (1,) * 4, (1,) * 2]


def test_a_replay_asks_for_no_tokens() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4, wants=(3,))
    bench.open(epoch=2, fresh=False)
    (replayed,) = steps(bench.tell(Resume(SESSION, 2, 0)))
    assert replayed.wants == ()


def test_a_second_resume_is_a_duplicate() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    bench.open(epoch=2, fresh=False)
    assert bench.tell(Resume(SESSION, 2, 0)) != []
    assert bench.tell(Resume(SESSION, 2, 0)) == []


def test_a_resume_of_another_epoch_or_sender_does_nothing() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    bench.open(epoch=2, fresh=False)
    assert bench.tell(Resume(SESSION, 1, 0)) == []
    assert bench.tell(Resume(SESSION, 2, 0), "stranger") == []
    assert (bench.counters.stale_epochs, bench.counters.wrong_sender) == (1, 1)


def test_tokens_of_an_earlier_epoch_are_not_sent() -> None:
    bench = Bench("4:8")
    bench.open()
    late = only(bench.step(0, 10, wants=(9,)), Submit)
    bench.open(epoch=2, fresh=False)
    assert bench.compute(late) == []


# What the sampler is told.


def test_sampling_that_looks_back_is_given_the_ids_so_far() -> None:
    bench = Bench("4:8")
    bench.open(sampling=SamplingParams(presence_penalty=1.0))
    first = only(bench.step(0, 10, wants=(9,)), Submit)
    assert first.ids == tuple(range(10))
    bench.compute(first)
    assert only(bench.step(10, wants=(10,)), Submit).ids == (*range(10), 509)


def test_ids_come_with_every_open() -> None:
    bench = Bench("4:8")
    penalty = SamplingParams(presence_penalty=1.0)
    bench.open(sampling=penalty)
    bench.apply(0, 10, wants=(9,))
    bench.open(epoch=2, fresh=False, sampling=penalty, token_ids=(*range(10), 7, 8))
    assert only(bench.step(10, 2, epoch=2, wants=(11,)), Submit).ids == (*range(10), 7, 8)


def test_sampling_that_does_not_look_back_is_spared_the_ids() -> None:
    bench = Bench("4:8")
    bench.open()
    assert only(bench.step(0, 10, wants=(9,)), Submit).ids == ()


# Faults.


def test_the_loss_of_the_next_hop_is_told_and_outputs_are_held_back() -> None:
    bench = Bench()
    bench.open()
    submit = only(bench.step(0, 4), Submit)
    (failed,) = failures(bench.lose("after"))
    assert (failed.refusal, failed.lost_peer) == (Refusal.NEXT_UNREACHABLE, "after")
    assert bench.compute(submit) == []
    assert bench.open(epoch=2, fresh=False).kv_length == 4


def test_a_lost_coordinator_that_is_the_next_hop_is_not_told_of_its_own_loss() -> None:
    bench = Bench()
    bench.open(next_peer="boss")
    submit = only(bench.step(0, 4), Submit)
    assert bench.lose("boss") == []
    assert bench.compute(submit) == []


def test_a_next_hop_that_the_view_does_not_hold_is_told_as_such() -> None:
    bench = Bench()
    bench.open()
    assert failures(bench.lose("after", known=False))[0].refusal is Refusal.UNKNOWN_PEER


def test_the_loss_of_others_changes_nothing() -> None:
    bench = Bench()
    bench.open()
    for peer in ("boss", "before", "stranger"):
        assert bench.lose(peer) == []
    assert SESSION in bench.table.sessions


def test_a_failed_computation_frees_the_session_and_is_told() -> None:
    bench = Bench()
    bench.open()
    submit = only(bench.step(0, 4), Submit)
    actions = bench.handle(ComputeFailed(SESSION, submit.ticket, "out of memory"))
    assert only(actions, Free) == Free(SESSION)
    assert failures(actions) == [Failed(SESSION, 1, Refusal.COMPUTE_FAILED, "out of memory")]
    assert bench.account.reserved == {}
    assert bench.open(epoch=2, fresh=False).kv_length == 0


def test_a_machine_without_memory_gives_up_one_session_and_takes_nobody_new_for_a_while() -> None:
    bench = Bench()
    bench.open()
    submit = only(bench.step(0, 4), Submit)
    actions = bench.handle(ComputeFailed(SESSION, submit.ticket, "2 GB", exhausted=True))
    assert only(actions, Free) == Free(SESSION)
    told = Failed(SESSION, 1, Refusal.KV_EXHAUSTED, "out of memory: 2 GB")
    assert failures(actions) == [told]
    assert bench.table.free_bytes() == 0, "so that routers go elsewhere"
    assert bench.open(epoch=2, fresh=False).refusal is Refusal.KV_EXHAUSTED
    due = bench.table.next_deadline()
    assert due is not None
    bench.tick(due)
    assert bench.table.free_bytes() > 0
    assert bench.open(epoch=3, fresh=False).refusal is None
    assert bench.counters.memory_exhausted == 1


def test_a_computation_that_failed_above_a_cut_may_have_damaged_what_lies_below() -> None:
    bench = Bench()
    bench.open()
    bench.apply(0, 4)
    late = only(bench.step(4), Submit)
    bench.step(4, round=1)
    assert only(bench.handle(ComputeFailed(SESSION, late.ticket, "no")), Free)


def test_a_computation_that_failed_before_the_session_was_made_anew_does_not_matter() -> None:
    bench = Bench()
    bench.open()
    late = only(bench.step(0, 4), Submit)
    bench.tell(Close(SESSION, 1))
    bench.open(epoch=2, fresh=False)
    assert bench.handle(ComputeFailed(SESSION, late.ticket, "no")) == []


@pytest.mark.parametrize("payload", [None, hidden(0, 3)])
def test_outputs_of_the_wrong_shape_count_as_failed(payload) -> None:  # type: ignore[no-untyped-def]
    bench = Bench()
    bench.open()
    submit = only(bench.step(0, 4), Submit)
    actions = bench.handle(Computed(SESSION, submit.ticket, payload))
    assert failures(actions)[0].refusal is Refusal.COMPUTE_FAILED


def test_outputs_out_of_order_count_as_failed() -> None:
    bench = Bench()
    bench.open()
    bench.step(0, 4)
    second = only(bench.step(4, 4), Submit)
    assert failures(bench.compute(second))[0].refusal is Refusal.COMPUTE_FAILED


def test_a_result_for_a_session_that_was_made_anew_as_another_kind_of_hop_is_dropped() -> None:
    bench = Bench("4:8")
    bench.open()
    submit = only(bench.step(0, 4, wants=(3,)), Submit)
    # The same blocks end earlier now: this hop is not the last one any more.
    sampling = {"sampling": None, "token_ids": (), "next_peer": "after"}
    bench.open(epoch=2, fresh=True, blocks=Span(4, 6), **sampling)
    assert bench.compute(submit) == []
    assert bench.counters.compute_failed == 0


def test_results_for_a_session_that_is_gone_are_dropped() -> None:
    bench = Bench()
    assert bench.handle(Computed(SESSION, 1, hidden(0, 1))) == []
    assert bench.handle(Computed(SESSION, 1, tokens=(Drawn(1, 1),))) == []
    assert bench.handle(ComputeFailed(SESSION, 1, "no")) == []


# The table of states.


def test_every_pair_of_state_and_input_is_in_the_table_or_an_error() -> None:
    for state in HopState:
        for what in HopInput:
            session = HopSession(SESSION, b"", Bench().order.blocks, ReplayLog(ReplayBudget(0)))
            session.state = state
            if (state, what) in HOP_TRANSITIONS:
                session.move(what)
                assert session.state is HOP_TRANSITIONS[state, what]
            else:
                with pytest.raises(SessionError, match=f"{state.value} .* {what.value}"):
                    session.move(what)
    assert len(HOP_TRANSITIONS) == 7
