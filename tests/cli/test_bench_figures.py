"""What the benchmarks make of what they saw: rates, ratios, compared ids, and when they refuse."""

from __future__ import annotations

import importlib
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.cli.bench import memory, models, verb
from swarmd.cli.bench.baselines import CONTINUOUS, STATIC, Job, measure, ratio
from swarmd.cli.bench.chart import draw
from swarmd.cli.bench.crowd import (
    CrowdRun,
    Figures,
    SessionRun,
    decode_rate,
    medians,
    percentile,
)
from swarmd.cli.bench.lab import Lab, spread
from swarmd.cli.bench.others import Others, Usage, read_usage
from swarmd.cli.bench.overlap import share_of_all
from swarmd.cli.bench.readings import Reading, StageWork, between
from swarmd.cli.bench.report import Baseline, Chart, Column, Report, Row, compare
from swarmd.cli.bench.run import Run, Steps
from swarmd.cli.bench.settings import Settings, counts
from swarmd.cli.bench.table import lines
from swarmd.cli.bench.throttle import throttled, turns
from swarmd.cli.bench.wan import bounds, node_flags
from swarmd.cli.bench.witness import witness
from swarmd.cli.main import run
from swarmd.core.errors import SwarmdError, UsageError

QUIET = Settings(allow_busy=True)


def quiet_run(settings: Settings = QUIET) -> Run:
    return Run(settings, Steps("test", quiet=True))


# -- crowds ----------------------------------------------------------------------------------------


def test_the_rate_while_all_decode_leaves_out_both_ends() -> None:
    early = SessionRun(0.0, (1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0))
    late = SessionRun(0.0, (1, 2, 3, 4), (2.0, 3.0, 4.0, 5.0))
    # From 2 to 4: two tokens of each.
    assert decode_rate([early, late]) == pytest.approx(2.0)
    after = SessionRun(0.0, (1, 2), (6.0, 7.0))
    assert decode_rate([early, after]) is None


def test_a_crowd_s_figures() -> None:
    work = StageWork(10.0, 14.0, 3.0, 2.0, 1.9, 4, 10, 10, ((9.0, 12.0),))
    idle = replace(work, busy_s=1.0, microbatches=10, intervals=((11.0, 13.0),))
    sessions = (
        SessionRun(0.0, (1, 2, 3), (1.0, 2.0, 3.0), cached_tokens=5),
        SessionRun(0.0, (1, 2, 3), (2.0, 4.0, 6.0)),
    )
    figures = CrowdRun(sessions, (work, idle), ()).figures()
    assert figures["tokens_per_s"] == pytest.approx(1.0)
    assert figures["session_rate_mean"] == pytest.approx(0.75)
    assert figures["slowest_to_mean"] == pytest.approx(0.5 / 0.75)
    assert (figures["ttft_p50_s"], figures["ttft_p99_s"]) == (1.0, 2.0)
    assert (figures["stage_busy"], figures["stage_microbatch"]) == ([0.5, 0.25], [2.5, 1.0])
    assert figures["all_busy"] == pytest.approx(0.25)
    assert figures["stage_step_ms"] == [500.0, 100.0]
    assert figures["cached_tokens"] == 5


def test_how_long_all_stages_compute_at_the_same_time() -> None:
    first = [(0.0, 2.0), (3.0, 5.0), (8.0, 20.0)]
    second = [(1.0, 4.0), (4.0, 4.5), (10.0, 11.0)]
    # 1-2, 3-4.5 and 10-11; of the last only what lies before the end.
    assert share_of_all([first, second], 0.0, 20.0) == pytest.approx(3.5 / 20)
    assert share_of_all([first, second], 0.0, 10.5) == pytest.approx(3.0 / 10.5)
    assert share_of_all([second], 4.2, 4.4) == pytest.approx(1.0)
    assert share_of_all([first, second, []], 0.0, 20.0) == 0.0


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=8),
        min_size=1,
        max_size=3,
    )
)
def test_overlap_is_what_counting_moments_gives(stages: list[list[tuple[int, int]]]) -> None:
    intervals = [[(float(a), float(a + n)) for a, n in stage] for stage in stages]
    together = [
        all(any(a <= moment < a + n for a, n in stage) for stage in stages) for moment in range(40)
    ]
    assert share_of_all(intervals, 0.0, 40.0) == pytest.approx(sum(together) / 40)


def test_readings_are_subtracted() -> None:
    counters = {"compute_busy_s": 1.0, "compute_steps": 4.0, "compute_microbatches": 2.0}
    counters["node_cpu_s"] = 0.75
    before = Reading(10.0, counters)
    grown = {name: 3 * value for name, value in counters.items()}
    work = between(before, Reading(12.0, grown, ((10.0, 11.0),)))
    assert (work.began, work.ended, work.intervals) == (10.0, 12.0, ((10.0, 11.0),))
    assert (work.seconds, work.cpu_s, work.busy, work.microbatch) == (2.0, 1.5, 1.0, 2.0)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 65)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (32, 64, 7)


def test_medians_over_rounds() -> None:
    rows: list[Figures] = [
        {"a": 3, "b": None, "c": [1.0, 2.0]},
        {"a": 9, "b": 2.0, "c": [5.0, 9.0]},
        {"a": 1, "b": 4.0, "c": [3.0, 1.0]},
    ]
    assert medians(rows) == {"a": 3, "b": 3.0, "c": [3.0, 2.0]}


def test_what_a_token_costs_besides_the_forward() -> None:
    # Two hops, each 10 tokens: 2 ms of forward in each, and 5 ms from token to token.
    work = StageWork(0.0, 0.05, 0.03, 0.02, 0.018, 10, 10, 10)
    session = SessionRun(0.0, (1,) * 11, tuple(0.005 * n for n in range(1, 12)))
    figures = CrowdRun((session,), (), (work, work)).figures()
    assert figures["forward_ms"] == pytest.approx(2.0)
    assert figures["own_wall_ms"] == pytest.approx(0.5)
    assert figures["own_cpu_ms"] == pytest.approx(1.2)
    assert CrowdRun((session, session), (), (work, work)).figures()["own_wall_ms"] is None


def test_a_ratio_needs_both() -> None:
    assert (ratio(3, 2.0), ratio(3, None), ratio(None, 2), ratio(3, 0)) == (1.5, None, None, None)


def test_the_checked_sessions_are_spread() -> None:
    assert spread(64, 4) == [63, 47, 31, 15]
    assert (spread(2, 4), spread(5, 0)) == ([1, 0], [])


# -- compared ids ----------------------------------------------------------------------------------


def test_one_different_id_is_found() -> None:
    same, other = [1, 2, 3], [1, 2, 4]
    found = compare("a", "b", [(same, same), (same, other)], must_hold=True)
    assert (found.sessions, found.equal, found.common, found.distinct_ids) == (2, 1, 2, 3)
    assert not found.held
    assert compare("a", "b", [(same, other)], must_hold=False).held
    assert not compare("a", "b", [(same, same[:2])], must_hold=True).held


def differing(run: Run) -> Report:
    report = Report("t", [Column("n", "n", "d")], [{"n": 1}])
    report.comparisons.append(compare("crowd", "alone", [([1], [2])], must_hold=True))
    return report


def test_different_ids_are_a_failure_that_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "out.json"
    with pytest.raises(SwarmdError, match="tokens are not"):
        verb._run("t", differing, QUIET, path, False)
    assert json.loads(path.read_text())["tokens_equal"] is False
    assert "crowd against alone: 1 sessions, ONLY 0 with the same ids" in capsys.readouterr().out


# -- other processes -------------------------------------------------------------------------------


def script(*usages: Usage) -> Others:
    return Others(cores=2, read=iter(usages).__next__)


def test_others_share_is_what_is_neither_ours_nor_idle() -> None:
    others = script(Usage(0, 100, 50), Usage(10, 110, 54), Usage(50, 200, 60), Usage(60, 200, 60))
    assert others.share == 0.0
    with others.watched():
        pass
    # 10 s of CPU were used, 4 of them ours, out of 2 cores for 10 s.
    assert others.share == pytest.approx(0.3)
    with others.watched():
        pass
    assert others.share == pytest.approx(0.15)


def test_our_own_work_is_not_others() -> None:
    """What a child used that was waited for counts as ours."""
    usage, children = read_usage(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    grown, since = read_usage().ours_s - usage.ours_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    burnt = since.ru_utime + since.ru_stime - children.ru_utime - children.ru_stime
    assert grown >= 0.8 * burnt > 0


def test_a_busy_machine_is_refused_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # An orphan: what runs below this process would count as its own.
    started = subprocess.run(
        ["sh", "-c", "yes > /dev/null & echo $!"], stdout=subprocess.PIPE, text=True, check=True
    )
    stranger = psutil.Process(int(started.stdout))
    try:
        out = tmp_path / "out.json"
        line = ["bench", "decode", "--model", "demo", "--max-busy", "0.01", "--output", str(out)]
        assert run(line) == 1
    finally:
        stranger.kill()
    assert "other processes took" in capsys.readouterr().err
    assert not out.exists()


def test_a_machine_that_becomes_busy_is_not_reported_from(tmp_path: Path) -> None:
    def measure(run: Run) -> Report:
        run.others = script(Usage(0, 0, 0), Usage(10, 10, 0))
        with run.others.watched():
            return Report("t", [Column("n", "n", "d")], [{"n": 1}])

    out = tmp_path / "out.json"
    settings = Settings(max_busy=0.4, allow_busy=True)
    assert verb._run("t", measure, settings, out, True) == 0
    assert (written := json.loads(out.read_text()))["busy"] is True
    assert written["others_cpu_share"] == 0.5
    out.unlink()
    refusing = quiet_run(replace(settings, allow_busy=False))
    with pytest.raises(SwarmdError, match="50% of the machine while"):
        refusing.refuse_if_busy(0.5, "while something was measured")
    refusing.refuse_if_busy(0.39, "then")


# -- flags -----------------------------------------------------------------------------------------

FLAGS: dict[str, tuple[str, object]] = {
    "model": ("small", "small"),
    "dtype": ("float32", "float32"),
    "sessions": ("3,7", (3, 7)),
    "prompt": ("5,2k", (5, 2048)),
    "tokens": ("77", 77),
    "rounds": ("9", 9),
    "stages": ("5", 5),
    "threads": ("6", 6),
    "checked": ("11", 11),
    "budget": ("12.5", 12.5),
    "max-busy": ("0.5", 0.5),
}
FIELDS = {"prompt": "prompts", "budget": "budget_s", "max-busy": "max_busy"}


def test_every_flag_reaches_the_scenario(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Settings] = []

    def measure(run: Run) -> Report:
        seen.append(run.settings)
        return Report("t", skipped="nothing to do")

    for scenario in verb.SCENARIOS:
        module = importlib.import_module(f"swarmd.cli.bench.{scenario}")
        monkeypatch.setattr(module, "run", measure)
        given = [word for name, (text, _) in FLAGS.items() for word in (f"--{name}", text)]
        line = ["bench", scenario, *given, "--allow-busy", "--no-baselines"]
        assert run([*line, "--output", str(tmp_path / "o.json")]) == 0
        for name, (_, value) in FLAGS.items():
            field = FIELDS.get(name, name)
            assert getattr(seen[-1], field) == value != getattr(module.DEFAULTS, field)
        assert (seen[-1].allow_busy, seen[-1].baselines) == (True, False)
        assert "skipped: nothing to do" in capsys.readouterr().out
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    "line",
    [
        ["decoding"],
        ["decode", "--model", "no-such"],
        ["decode", "--dtype", "int3"],
        ["decode", "--sessions", "1,x"],
        ["decode", "--sessions", "0"],
        ["decode", "--prompt", "1.5k"],
        ["decode", "--tokens", "1"],
    ],
)
def test_a_mistake_of_the_caller_is_one(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *line, "--allow-busy"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("swarmd: ")


def test_counts() -> None:
    assert counts("1, 4,16,4", "--x") == (1, 4, 16)
    assert counts("512,2k", "--x") == (512, 2048)


# -- the budget ------------------------------------------------------------------------------------


async def test_the_budget_ends_the_rounds_and_says_so() -> None:
    nodes: Any = SimpleNamespace(nodes=[SimpleNamespace(address="127.0.0.1:1", pid=1)])
    settings = Settings(rounds=3, budget_s=1000.0, baselines=False)
    for seconds, expected in ((1.0, 3), (1e6, 1)):
        report, made = Report("t"), quiet_run(settings)
        made.others = script(*(Usage(at, 0, 0) for at in range(20)))
        lab = Lab(made, report, nodes)

        async def crowd(*_: object, seconds: float = seconds) -> CrowdRun:
            return CrowdRun((SessionRun(0.0, (1,), (seconds,)),), (), ())

        lab.crowd = crowd  # type: ignore[method-assign]
        assert len(await lab.rounds([[1]], "a crowd")) == expected
        said = ["a crowd: 1 of 3 rounds fitted into the budget of 1000 s"]
        assert report.notes == (said if expected < 3 else [])
        await lab.client.close()


async def test_a_round_that_others_disturb_is_repeated() -> None:
    nodes: Any = SimpleNamespace(nodes=[SimpleNamespace(address="127.0.0.1:1", pid=1)])
    # Of 10 s on two cores others take 12, 1, 12, 0, ...
    taken = [0, 12, 12, 13, 13, 25, 25, 25] + [25 + 12 * (n // 2) for n in range(1, 13)]
    usages = [Usage(at=10 * ((n + 1) // 2), machine_s=s, ours_s=0) for n, s in enumerate(taken)]

    def busy_now_and_then(settings: Settings) -> tuple[Run, Report, Lab]:
        made = quiet_run(settings)
        made.others = script(*usages)
        report = Report("t")
        lab = Lab(made, report, nodes)

        async def crowd(*_: object) -> CrowdRun:
            return CrowdRun((SessionRun(0.0, (1,), (1.0,)),), (), ())

        lab.crowd = crowd  # type: ignore[method-assign]
        return made, report, lab

    settings = Settings(rounds=2, baselines=False)
    made, report, lab = busy_now_and_then(settings)
    crowds = await lab.rounds([[1]], "a crowd")
    assert [crowd.others for crowd in crowds] == pytest.approx([0.05, 0.0])
    assert made.others.share == pytest.approx(0.025)
    assert report.notes == ["a crowd: 2 rounds repeated, which others disturbed"]
    with pytest.raises(SwarmdError, match="60% of the machine while a crowd was measured"):
        await lab.rounds([[1]], "a crowd")
    await lab.client.close()
    made, report, lab = busy_now_and_then(replace(settings, allow_busy=True))
    assert [c.others for c in await lab.rounds([[1]], "a crowd")] == pytest.approx([0.6, 0.05])
    assert made.others.share == pytest.approx(0.325)
    await lab.client.close()


def test_what_others_disturb_is_done_once_more_if_there_is_time() -> None:
    for taken, budget, times in (([0, 9, 9, 9], 1e6, 2), ([0, 1], 1e6, 1), ([0, 9], 0.0, 1)):
        done: list[int] = []
        made = quiet_run(Settings(budget_s=budget))
        made.others = script(*(Usage(10 * n, s, 0) for n, s in enumerate(taken)))
        assert made.undisturbed("work", lambda done=done: done.append(1)) is None
        assert len(done) == times
        assert made.others.share == pytest.approx(0.0 if times == 2 else taken[-1] / 20)


def test_baselines_keep_their_part_of_the_budget() -> None:
    with_them = quiet_run(Settings(budget_s=1000.0))
    without = quiet_run(Settings(budget_s=1000.0, baselines=False))
    assert [r.affords(600) for r in (with_them, without)] == [True, True]
    assert [r.affords(700) for r in (with_them, without)] == [False, True]
    assert with_them.affords(700, baselines_follow=False)


# -- models ----------------------------------------------------------------------------------------


def test_spans_cost_the_same_with_the_head_counted() -> None:
    demo = models.find("demo", "bfloat16")
    # 8 blocks, and a head that is worth two of them.
    assert round(demo.head_blocks) == 2
    assert demo.spans(2) == ("0:5", "5:8")
    assert demo.spans(1) == ("0:8",)
    assert demo.spans(8) == tuple(f"{n}:{n + 1}" for n in range(8))
    heavy = replace(demo, blocks=2, head_blocks=100.0)
    assert heavy.spans(2) == ("0:1", "1:2")
    with pytest.raises(UsageError, match="8 blocks cannot be cut into 9"):
        demo.spans(9)


def test_prompts_are_the_same_in_any_crowd() -> None:
    demo = models.find("demo", "bfloat16")
    many = models.prompts(demo, 4, 16)
    assert models.prompts(demo, 2, 16) == many[:2]
    assert many[0] != many[1]
    assert models.prompts(demo, 1, 16, "salt") != many[:1]


def test_where_models_are_kept() -> None:
    assert models.cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/swarmd/bench")
    assert models.cache_dir({"HOME": "/h"}) == Path("/h/.cache/swarmd/bench")


def python(monkeypatch: pytest.MonkeyPatch, path: Path, script: str) -> None:
    """Have a shell script run where a Python is wanted."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))


def test_a_witness_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python(monkeypatch, tmp_path / "python", "echo one >&2; echo 'E: no torch' >&2; exit 1")
    with pytest.raises(SwarmdError, match=r"^make failed: E: no torch$"):
        witness("make", {})


def test_a_witness_that_is_late_is_left_with_what_it_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = """echo '{"crowds": []}'; echo noise; exec sleep 60"""
    python(monkeypatch, tmp_path / "python", said)
    demo = models.find("demo", "bfloat16")
    assert witness("measure", {}, 1.0) == [{"crowds": []}, {"error": "not done within 1 s"}]
    python(monkeypatch, tmp_path / "python", """echo '{"error": "no such class"}'""")
    jobs = [Job(STATIC, [[[1]]], 2), Job(CONTINUOUS, [[[1]]], 2)]
    first, second = measure(quiet_run(), demo, jobs, threads=2)
    assert first.baseline == Baseline(STATIC, unavailable="no such class")
    assert second.baseline == Baseline(CONTINUOUS, unavailable="no such class")


# -- links and slow machines -----------------------------------------------------------------------


def test_what_links_allow() -> None:
    rows: list[Row] = [
        {"sessions": size, "mbit": mbit, "rtt_ms": rtt, "decode_tokens_per_s": rate}
        for size, mbit, rtt, rate in (
            (1, None, 0.0, 10.0),
            (16, None, 0.0, 80.0),
            (1, 100.0, 100.0, 3.0),
            (16, 100.0, 100.0, 32.0),
            (16, 100.0, 20.0, 40.0),
        )
    ]
    bounds(rows, stages=3)
    assert [row["bound_tokens_per_s"] for row in rows] == pytest.approx([10, 80, 4, 64, 80])
    assert [row["ratio_to_bound"] for row in rows] == pytest.approx([1, 1, 0.75, 0.5, 0.5])
    assert rows[3]["ratio_to_no_delay"] == pytest.approx(0.4)


def test_nodes_are_announced_where_the_proxy_listens() -> None:
    first, _, third = node_flags([(1, 11), (2, 12), (3, 13)])
    listen = ["--listen", "127.0.0.1:11", "--announce", "127.0.0.1:1"]
    assert first == [*listen, "--peers", "127.0.0.1:2"]
    assert third[-2:] == ["--peers", "127.0.0.1:1,127.0.0.1:2"]


def test_a_slow_machine_runs_its_share_of_every_period() -> None:
    seen: dict[int, list[tuple[float, bool]]] = {1: [], 2: [], 3: []}
    moments = []
    for moment, pid, runs in islice(turns({1: 0.25, 2: 0.5, 3: 1.0}, 1.0), 60):
        seen[pid].append((moment, runs))
        moments.append(moment)
    assert moments == sorted(moments)
    for pid, share in ((1, 0.25), (2, 0.5)):
        starts = [moment for moment, runs in seen[pid] if runs]
        stops = [moment for moment, runs in seen[pid] if not runs]
        pairs = list(zip(starts, stops, strict=False))
        assert all(b - a == pytest.approx(share) for a, b in pairs)
    assert seen[3] == [(pytest.approx(2 / 3), True)]  # as fast as it can, it is never stopped


@pytest.fixture
def busy() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield psutil.Process(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_throttled_process_is_stopped_and_goes_on_and_is_left_running(
    busy: psutil.Process,
) -> None:
    with throttled({busy.pid: 0.5}):
        for _ in range(2):
            while busy.status() != psutil.STATUS_STOPPED:
                pass
            while busy.status() == psutil.STATUS_STOPPED:
                pass
    assert busy.status() != psutil.STATUS_STOPPED


# -- how it looks ----------------------------------------------------------------------------------


def test_what_stands_below_the_table() -> None:
    report = Report("t", notes=["note"], baselines=[Baseline("b", unavailable="no such library")])
    ids = [1, 2, 3]
    report.comparisons.append(compare("x", "y", [(ids, ids)], must_hold=True))
    report.comparisons.append(compare("x", "z", [(ids, [1, 9, 9])], must_hold=False))
    assert lines(report) == [
        "tokens: x against y: 1 sessions, the same ids",
        "tokens: x against z: 1 sessions, 0 with the same ids "
        "(rounding differs; 1 leading ids agree)",
        "b: not available: no such library",
        "note",
    ]


def test_a_chart_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chart = Chart(x="n", series={"a": "A", "b": "B", "c": "C"}, y_title="y", x_title="x")
    rows: list[Row] = [{"n": 1, "a": 2.0, "b": None}, {"n": 2, "a": 3.0, "b": 1.0}]
    for bars in (False, True):
        report = Report("title", rows=rows, chart=replace(chart, bars=bars))
        png, svg = draw(report, tmp_path / "c.json")
        assert png.read_bytes().startswith(b"\x89PNG")
        first = svg.read_bytes()
        assert b"<svg" in first
        draw(report, tmp_path / "c.json")
        assert svg.read_bytes() == first


def test_memory_that_no_cache_holds_is_slower_than_its_bandwidth() -> None:
    found = memory.figures()
    line_ns = 64 / found["memory_gb_per_s"]  # what a line takes where the next ones are foreseen
    assert found["memory_latency_ns"] > line_ns > 0
