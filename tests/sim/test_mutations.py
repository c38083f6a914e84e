"""The simulation finds what it is there to find: faults that are planted into the production code.

`SWARMD_MUTATIONS=all` tries every one; otherwise a few that show themselves soon.
"""

from __future__ import annotations

import os

import pytest
from mutations import NOT_FOUND_YET, PLANTS

from swarmd.sim.seeds import run_seed

ALL = os.environ.get("SWARMD_MUTATIONS") == "all"
AT_ONCE = (
    "no truncation on rewind",
    "duplicates are computed",
    "the reservation stays when a session is freed",
    "a close frees nothing",
    "tokens count whatever their position",
    "announcements are not renewed",
)
SEEDS = 400
"""Within so many seeds a planted fault must be found."""


@pytest.mark.parametrize("name", sorted(set(PLANTS) - set(NOT_FOUND_YET)) if ALL else AT_ONCE)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    assert any(run_seed(seed)[2] for seed in range(SEEDS)), f"{name}: not found by {SEEDS} seeds"
