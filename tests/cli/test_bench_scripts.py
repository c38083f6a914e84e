"""The scripts of bench/: how they are called, and what they make of what they saw."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.kills import STALL_BAR_S, Run, summary
from swarmd.cli.bench.machine import circumstances

ROOT = Path(__file__).parents[2]


def test_decode_is_the_verb_s_scenario_with_its_options(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "decode.py")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def called(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *flags], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    helped = called("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--tokens" in helped.stdout
    refused = called("--dtype", "int3")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "swarmd: no dtype 'int3' here: bfloat16 or float32\n"


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (str(ROOT / "bench" / "kills.py"), "python bench/kills.py --runs 4"),
        ("/usr/bin/swarmd", "swarmd --runs 4"),
        (str(ROOT / "swarmd" / "cli" / "main.py"), "swarmd --runs 4"),
    ],
)
def test_a_result_tells_the_command_that_it_is_from(
    monkeypatch: pytest.MonkeyPatch, script: str, command: str
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--runs", "4"])
    assert circumstances()["command"] == command


# -- kills -----------------------------------------------------------------------------------------

GOOD = Run(
    "middle",
    "decode",
    exact=True,
    counted=True,
    tokens_before=25,
    repairs=1,
    resumes=0,
    stall_s=0.5,
    undisturbed_stall_s=0.1,
    recomputed=3,
)
WRONG = replace(GOOD, exact=False)


def test_kills_that_nobody_notices_pass() -> None:
    found = summary([GOOD, replace(GOOD, counted=False, stall_s=9.0), GOOD], wanted=2)
    assert found["pass"] is True
    assert (found["runs"], found["counted"], found["exact"]) == (3, 2, 2)
    assert (found["inexact_uncounted"], found["stall_worst_s"]) == (0, 0.5)


@pytest.mark.parametrize(
    ("runs", "uncounted"),
    [
        ([GOOD], 0),
        ([], 0),
        ([GOOD, WRONG], 0),
        ([GOOD, GOOD, replace(WRONG, counted=False)], 1),
        ([GOOD, replace(GOOD, stall_s=STALL_BAR_S)], 0),
    ],
    ids=["too-few", "none", "inexact", "inexact-uncounted", "stalled"],
)
def test_one_fault_fails_all_kills(runs: list[Run], uncounted: int) -> None:
    found = summary(runs, wanted=2)
    assert found["pass"] is False
    assert found["inexact_uncounted"] == uncounted
