"""Faults that are planted into the production code turn the suite red: each of them.

The simulation finds most; `SWARMD_MUTATIONS=all` tries every one, otherwise a few that show
themselves soon. Those that it cannot find, tests of the state machines do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import FOUND_BY_TESTS, PLANTS

from swarmd.sim.seeds import run_seed

ALL = os.environ.get("SWARMD_MUTATIONS") == "all"
AT_ONCE = (
    "no truncation on rewind",
    "duplicates are computed",
    "the reservation stays when a session is freed",
    "a close frees nothing",
    "tokens count whatever their position",
    "announcements are not renewed",
    "opens are sent without links",
    "a lease never ends",
    "repairs know no pause and no end",
)
SHOWN_BY = {"repairs know no pause and no end": 274}
"""A seed that has shown a fault goes first: its like comes seldom. The others follow, should the
simulation go another way by now."""
SEEDS = 400
"""Within so many seeds a planted fault must be found."""


@pytest.mark.parametrize("name", sorted(set(PLANTS) - set(FOUND_BY_TESTS)) if ALL else AT_ONCE)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    seeds = dict.fromkeys((SHOWN_BY.get(name, 0), *range(SEEDS)))
    assert any(run_seed(seed)[2] for seed in seeds), f"{name}: not found by {SEEDS} seeds"


@pytest.fixture(scope="module")
def printed() -> str:
    """What pytest says of all tests of FOUND_BY_TESTS, each with its fault planted."""
    here, root = Path(__file__).parent, Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(root)])}
    tests = [str(root / "tests/pipeline" / test) for test in FOUND_BY_TESTS.values()]
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "mutations", *tests]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", FOUND_BY_TESTS)
def test_what_hides_from_the_simulation_fails_a_test_of_its_state_machine(
    name: str, printed: str
) -> None:
    assert f"FAILED tests/pipeline/{FOUND_BY_TESTS[name]}" in printed, printed
