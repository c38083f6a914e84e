"""What is asked of a benchmark's figures: said with each of them, enforced when that is wanted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from swarmd.cli.bench import decode
from swarmd.cli.bench.report import Bar, Column, Report, Row
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.table import lines
from swarmd.cli.main import run

GOOD: Row = {"sessions": 1, "ratio_to_generate": 0.98, "own_cpu_ms": 1.5}


def verdicts(row: Row) -> list[bool]:
    return [bar.met for bar in decode.bars(decode.DEFAULTS, row)]


def test_a_figure_on_its_bar_meets_it_and_one_that_is_not_there_misses_it() -> None:
    assert verdicts(GOOD) == [True, True]
    assert verdicts(GOOD | {"ratio_to_generate": 0.979}) == [False, True]
    assert verdicts(GOOD | {"own_cpu_ms": 1.501}) == [True, False]
    assert verdicts(GOOD | {"ratio_to_generate": None}) == [False, True]
    assert verdicts({}) == [False, False]


def test_nothing_is_asked_of_another_model_or_other_nodes() -> None:
    for other in ({"model": "demo"}, {"dtype": "float32"}, {"stages": 3}, {"threads": 2}):
        assert decode.bars(replace(decode.DEFAULTS, **other), GOOD) == []  # type: ignore[arg-type]


def test_each_bar_is_said_with_the_figure() -> None:
    bars = [Bar("speed", 1.5, at_least=1.0), Bar("cost", 1.5, at_most=1.0), Bar("x", None, 2.0)]
    assert lines(Report("t", bars=bars)) == [
        "speed: 1.500, asked at least 1: met",
        "cost: 1.500, asked at most 1: MISSED",
        "x: asked at least 2, not measured",
    ]
    assert Report("t", bars=bars).as_dict()["bars"] == [
        {"what": "speed", "value": 1.5, "at_least": 1.0, "met": True},
        {"what": "cost", "value": 1.5, "at_most": 1.0, "met": False},
        {"what": "x", "value": None, "at_least": 2.0, "met": False},
    ]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Row:
    """What `decode` is to have measured."""
    row = dict(GOOD)

    def measure(run: Run) -> Report:
        bars = decode.bars(run.settings, row)
        return Report("t", [Column("sessions", "sessions", "d")], [row], bars=bars)

    monkeypatch.setattr(decode, "run", measure)
    return row


def test_a_missed_bar_fails_the_command_where_that_is_wanted(
    figures: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["bench", "decode", "--allow-busy", "--output", str(tmp_path / "out.json")]
    assert run([*line, "--enforce"]) == 0
    figures["own_cpu_ms"] = 1.7
    assert run(line) == 0
    missed = "CPU ms per token and hop besides the forward: 1.700, asked at most 1.5: MISSED"
    assert missed in capsys.readouterr().out.splitlines()
    assert run([*line, "--enforce"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"swarmd: {missed}"
    assert [bar["met"] for bar in json.loads((tmp_path / "out.json").read_text())["bars"]] == [
        True,
        False,
    ]


@pytest.mark.parametrize("line", [["prefill"], ["decode", "--model", "demo"]])
def test_where_nothing_is_asked_nothing_can_be_enforced(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *line, "--allow-busy", "--enforce"]) == 2
    assert f"--enforce: {line[0]} has no bars" in capsys.readouterr().err
