"""`swarmd bench` from end to end on small models: what it measures, compares and writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from without_extras import BLOCKER

from swarmd.cli.bench import models, routing
from swarmd.cli.main import run

ABOUT = {"schema", "scenario", "title", "date", "commit", "command", "machine", "versions"}
FOUND = {"settings", "seconds", "others_cpu_share", "busy", "rows", "baselines", "comparisons"}
MACHINE = {"cpu", "cores", "architecture", "memory_gib", "system", "load_before"}


def bench(tmp_path: Path, *line: str) -> dict[str, Any]:
    """Run it and return what it wrote."""
    path = tmp_path / "out.json"
    assert run(["bench", *line, "--allow-busy", "--output", str(path)]) == 0
    record: dict[str, Any] = json.loads(path.read_text())
    assert {*ABOUT, *FOUND, "tokens_equal", "bars", "notes"} == record.keys()
    assert record["machine"].keys() == MACHINE
    assert record["tokens_equal"] is True
    return record


def test_concurrency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--sessions", "1,2", "--tokens", "8", "--rounds", "2")
    record = bench(tmp_path, "concurrency", "--model", "demo", "--dtype", "float32", *size)
    assert (record["schema"], record["scenario"]) == (1, "concurrency")
    assert re.fullmatch(r"[0-9a-f]{12}\+?", record["commit"] or "0" * 12)
    assert record["versions"]["torch"]
    one, two = record["rows"]
    assert (one["sessions"], two["sessions"]) == (1, 2)
    for row in record["rows"]:
        assert row["tokens_per_s"] > 0
        assert 0 < row["slowest_to_mean"] <= 1
        assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"]
        assert row["ratio_to_generate"] == pytest.approx(
            row["decode_tokens_per_s"]
            / record["baselines"]["transformers.generate"]["rows"][0]["decode_tokens_per_s"],
            rel=1e-4,
        )
    _tokens_were_compared(record["comparisons"])
    for name in ("transformers.generate, one batch", "transformers.generate_batch"):
        (row,) = record["baselines"][name]["rows"]
        assert (row["sessions"], row["threads"]) == (2, 2)
        assert row["tokens_per_s"] > 0
    out = capsys.readouterr().out
    assert "demo float32, 2 nodes x 1 thread, prompt 64, 8 new tokens" in out
    assert re.search(r"tokens/s while all decode +\d", out)


def _tokens_were_compared(comparisons: list[dict[str, Any]]) -> None:
    """Each session between crowds and rounds, alone, and with the whole model in one process."""
    against = {(c["what"], c["against"]): c for c in comparisons}
    others = "other crowds and rounds"
    assert against["crowd of 1", others]["sessions"] == 1
    assert against["crowd of 2", others]["sessions"] == 3
    assert against["sessions in crowds", "each alone"]["sessions"] == 2
    assert against["session 0", "transformers.generate"]["common"] == 8
    for comparison in comparisons:
        assert comparison["must_hold"]
        assert comparison["equal"] == comparison["sessions"]
        assert comparison["distinct_ids"] >= 4


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> models.Model:
    """A model that is made here, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return models.find("tiny", "bfloat16")


def test_wan_links_are_as_long_as_they_say(tmp_path: Path, tiny: models.Model) -> None:
    made = (tiny.directory / "model.safetensors").stat().st_mtime_ns
    size = ("--sessions", "1", "--tokens", "4", "--prompt", "8", "--stages", "2")
    record = bench(tmp_path, "wan", "--model", "tiny", *size, "--checked", "1")
    assert tiny.directory.is_relative_to(tmp_path)
    assert (tiny.directory / "model.safetensors").stat().st_mtime_ns == made
    assert list(tiny.directory.parent.iterdir()) == [tiny.directory]
    rows = {(row["rtt_ms"], row["mbit"]): row for row in record["rows"]}
    assert len(rows) == 5
    for (rtt_ms, _), row in rows.items():
        # A token crosses two links one way: it cannot be faster, whatever the machine. Counted from
        # before the request: between two tokens there is less if the client was late for the first.
        assert row["tokens_per_s"] * 2 * rtt_ms / 2000 <= 1
    assert record["baselines"] == {}
    assert all(c["sessions"] == c["equal"] == 1 for c in record["comparisons"])
    assert len(record["comparisons"]) == 5


def test_routing_is_measured_against_the_full_search(tmp_path: Path) -> None:
    record = bench(tmp_path, "routing", "--sessions", "64,96", "--rounds", "2")
    assert [row["peers"] for row in record["rows"]] == [64, 96]
    for row in record["rows"]:
        assert row["ratio_to_full"] == pytest.approx(
            row["full_ms_p50"] / row["choose_ms_p50"], rel=1e-4
        )
        assert row["ratio_p50"] >= 1.0 - 1e-9
    found = record["baselines"]["search among all peers"]["rows"]
    assert [row["peers"] for row in found] == [64, 96]


def test_what_needs_more_says_what_to_install() -> None:
    script = f"{BLOCKER}\nfrom swarmd.cli.main import main; main()"
    command = [sys.executable, "-c", script, "bench", "decode"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("swarmd: benchmarks need psutil and torch, not installed here")


def test_a_scenario_that_cannot_run_says_why_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(routing, "SOURCE", tmp_path / "routing.py")
    path = tmp_path / "out.json"
    assert run(["bench", "routing", "--allow-busy", "--output", str(path)]) == 0
    assert "skipped: " in capsys.readouterr().out
    assert not path.exists()
