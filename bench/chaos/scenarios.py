"""The scenarios by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bench.chaos import (
    crowds,
    deaths,
    directory,
    leaving,
    links,
    partitions,
    scarcity,
    silence,
    standbys,
)
from bench.chaos.lab import Lab
from bench.chaos.verdict import Findings

Scenario = Callable[[Lab], Awaitable[Findings]]

SCENARIOS: dict[str, Scenario] = {
    "kill": deaths.kill,
    "double": deaths.double,
    "all-killed": deaths.all_killed,
    "standby": standbys.standby,
    "term": leaving.term,
    "drain-chain": leaving.drain_chain,
    "rolling": leaving.rolling,
    "stop": silence.stop,
    "slow": silence.slow,
    "dht-killed": directory.dht_killed,
    "bootstraps-gone": directory.bootstraps_gone,
    "clock": directory.clock,
    "vanish": crowds.vanish,
    "flip": links.flip,
    "duplicate": links.duplicate,
    "memory": scarcity.memory,
    "disk": scarcity.disk,
    "partition": partitions.partition,
}
