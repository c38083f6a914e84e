"""The chaos scenarios in short, with the swarm of the other tests: no wrong id, error or leak."""

from __future__ import annotations

import pytest

from bench.chaos.lab import Lab, Settings
from bench.chaos.scenarios import SCENARIOS
from bench.chaos.verdict import judge
from swarmd.cli.local_swarm import LocalSwarm

SHORT = Settings(runs=1, clients=4, tokens=50, silence_s=2.0, patience_s=0.0, calm_rounds=0)


# In this order nobody has to be started again before the last one.
@pytest.mark.parametrize("name", ["stop", "term", "kill"])
async def test_a_fault_costs_no_token(whole_swarm: LocalSwarm, name: str) -> None:
    lab = Lab(whole_swarm, SHORT)
    found = await SCENARIOS[name](lab)
    _, leaked = await lab.until_free()
    verdict = judge(found, lab.reference, leaked)
    assert verdict["exact"], verdict
    assert (verdict["errors"], verdict["leaked_bytes"]) == (0, 0), verdict
    assert verdict["counted"] == 1, verdict
