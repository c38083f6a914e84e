"""A long run of seeds says now and then how far it is."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import Counter

import pytest

from swarmd.sim import seeds
from swarmd.sim.progress import EVERY_S, EVERY_SEEDS, Progress


def test_a_line_comes_after_some_hundred_seeds() -> None:
    progress = Progress(2 * EVERY_SEEDS, 100.0)
    lines = [progress.one_more(100.0 + i / 50, failed=i == 7) for i in range(1, EVERY_SEEDS + 1)]
    assert lines[-1] == "500 of 1000 seeds, 1 failed, 50.0 a second"
    assert not any(lines[:-1])
    assert progress.failed == 1


def test_slow_seeds_are_told_of_every_minute() -> None:
    progress = Progress(20, 0.0)
    told = [bool(progress.one_more(i * EVERY_S / 2, failed=False)) for i in range(1, 7)]
    assert told == [False, True, False, True, False, True]


def test_the_command_says_how_it_went() -> None:
    command = [sys.executable, "-m", "swarmd.sim", "--seeds", "1", "--first", "3", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.startswith("1 seeds, 0 failed, "), done.stdout + done.stderr


def test_nothing_is_collected_during_a_seed_and_again_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(seed: int) -> tuple[int, Counter[str], str]:
        return seed, Counter(), "collects" if gc.isenabled() else ""

    monkeypatch.setattr(seeds, "_run", run)
    assert seeds.run_seed(3) == (3, Counter(), "")
    assert gc.isenabled()
