"""A verdict is false as soon as one id, error, leak or bar is."""

from __future__ import annotations

import pytest

from bench.chaos import table
from bench.chaos.deaths import PLACES
from bench.chaos.slices import join
from bench.chaos.soak import Tally
from bench.chaos.standbys import RUNS, old_positions
from bench.chaos.verdict import Bar, Calm, Findings, Stream, judge

REFERENCE = {("a", 3): [1, 2, 3]}


def stream(*ids: int, done: bool = True, error: str = "") -> Stream:
    return Stream(0, "a", 3, 0.0, list(ids), [1.0 + i for i in range(len(ids))], error, done)


def verdict(*streams: Stream, leaked: int = 0, **more: object) -> dict[str, object]:
    return judge(Findings(list(streams), **more), REFERENCE, leaked)  # type: ignore[arg-type]


def test_all_ids_right_and_nothing_left_behind_passes() -> None:
    assert verdict(stream(1, 2, 3))["pass"]


def test_one_wrong_id_fails_it_even_in_a_stream_that_ended_in_an_error() -> None:
    found = verdict(stream(1, 2, 3), stream(1, 9, done=False, error="lost"), may_fail=True)
    assert (found["exact"], found["wrong"], found["pass"]) == (False, 1, False)


def test_a_stream_that_ended_too_soon_is_wrong() -> None:
    assert not verdict(stream(1, 2))["exact"]


def test_an_error_a_leak_and_a_bar_that_is_missed_each_fail_it() -> None:
    right = stream(1, 2, 3)
    assert not verdict(right, stream(1, done=False, error="lost"))["pass"]
    assert not verdict(right, leaked=1)["pass"]
    assert not verdict(right, bars=[Bar("stall", 2.0, 1.0)])["pass"]
    assert not verdict(right, bars=[Bar("stall", None, 1.0)])["pass"]
    assert not verdict(right, counted=0)["pass"]
    assert not verdict()["pass"]


def test_a_stall_is_the_longest_wait_after_the_fault_less_the_usual_one() -> None:
    calm = Calm(0.1, 0.2, {"a": 1.0})
    one = Stream(0, "a", 3, 0.0, [1, 2, 3], [1.0, 3.0, 3.7], "", True)
    one.hit_at = 3.1
    assert round(calm.stall(one), 3) == 0.5
    one.hit_at = 0.5
    assert round(calm.stall(one), 3) == 1.8


def test_a_first_token_is_compared_with_the_slowest_of_those_undisturbed() -> None:
    calm = Calm(0.1, 0.2, {"a": 1.0, "b": 2.0})
    one = Stream(0, "a", 1, 0.0, [1], [2.5], "", True, hit_at=0.5)
    assert calm.stall(one) == 0.5
    assert calm.later_than_before(one) == 1.5


def test_what_is_copied_after_a_kill_is_new_or_was_copied_before() -> None:
    """Two of three hops have copies yet; the bar for what is old is 0."""
    assert old_positions(copied=2 * 1000 + 30, new=1000, lag=30, hit=0) == 0
    assert old_positions(copied=2 * 1000 + 30 + 2 * 8, new=1000, lag=30, hit=8) == 0
    assert old_positions(copied=3 * 1000, new=1000, lag=0, hit=8) == 1000 - 16
    assert old_positions(copied=2 * 1000 + 4140, new=1000, lag=0, hit=8) == 4140 - 16
    assert PLACES[:3] == ("first", "middle", "last")
    assert RUNS == 2 * 3, "each with a short and with a long context"


def slice_of(*stalls: float, **more: object) -> dict[str, object]:
    found = verdict(
        stream(1, 2, 3),
        stalls=list(stalls),
        bars=[Bar("stall_p99_ms", max(stalls), 100), Bar("back_s", 1.0, 10)],
        facts={"stalls_ms": {"first": list(stalls)}, "stalls_p50_p99_ms": {}, "codes": [0]},
    )
    circumstances = {"scenario": "kill", "dtype": "float32", "clients": 8, "full": False}
    times = {"seed": 1, "took_s": 10.0, "others_share": 0.1, "loaded": False, "load_before": 0.0}
    return {**found, **circumstances, **times, **more}


def test_slices_of_a_scenario_are_judged_together() -> None:
    whole = join(slice_of(20.0, 30.0), slice_of(90.0, seed=2, others_share=0.3))
    assert (whole["pass"], whole["requests"], whole["stalls_ms"]) == (True, 2, [20.0, 30.0, 90.0])
    assert (whole["stall_p50_ms"], whole["stall_p99_ms"], whole["others_share"]) == (30, 90, 0.2)
    assert whole["facts"]["stalls_p50_p99_ms"] == {"first": [30, 90, 3]}
    assert whole["facts"]["codes"] == [0, 0]
    assert whole["slices"] == 2
    missed = join(whole, slice_of(101.0))
    assert [(bar["name"], bar["met"]) for bar in missed["bars"]] == [
        ("stall_p99_ms", False),
        ("back_s", True),
    ]
    assert not missed["pass"]
    with pytest.raises(ValueError, match="bfloat16"):
        join(whole, slice_of(1.0, dtype="bfloat16"))


def test_a_soak_has_the_stalls_of_streams_that_were_hit_and_what_was_computed_again() -> None:
    tally = Tally(Calm(0.1, 0.2, {"a": 1.0}))
    hit, spared, runs = (stream(1, 2, 3) for _ in range(3))
    hit.times, hit.hit_at, hit.recomputed = [1.0, 2.5, 3.0], 1.2, 40
    spared.times, spared.recomputed = [1.0, 9.0, 10.0], 2
    runs.done = False
    failed = stream(1, done=False, error="lost")
    failed.hit_at = 0.0
    streams = [hit, spared, runs, failed]
    tally.take(streams, REFERENCE)
    assert streams == [runs], "it may go on yet"
    figures = tally.figures()
    assert (figures["requests"], figures["failed"], figures["hit"]) == (3, 1, 1)
    assert (figures["stall_p50_ms"], figures["stall_p99_ms"]) == (1300, 1300)
    assert figures["recomputed_tokens"] == 42


def test_a_soak_of_before_has_a_row_without_stalls_and_one_of_now_with_them() -> None:
    before = {"scenario": "soak", "minutes": 40.0, "requests": 9, "wrong": 0, "failed": 0}
    before |= {"repairs_and_resumes": 3, "leaked_bytes": 0, "growth_mib_per_hour": {"x": 0.5}}
    now = before | {"hit": 2, "stall_p50_ms": 10, "stall_p99_ms": 90, "recomputed_tokens": 42}
    assert table._row("chaos-soak", before)[2:6] == ("9", "yes", "-", "-")
    assert table._row("chaos-soak", now)[2:6] == ("9, 2", "yes", "10 / 90", "42")


def test_the_page_about_failures_shows_the_verdicts_that_are_kept() -> None:
    # After a new verdict: python -m bench.chaos.table
    assert table.BEGIN + table.table() + table.END in table.PAGE.read_text()
