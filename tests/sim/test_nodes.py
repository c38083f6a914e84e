"""Whole nodes with seeded faults: every request ends as it should, and nothing is left of it.

A failing seed reproduces: `python -m swarmd.sim SEED`. `make simulate` runs thousands.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from swarmd.sim.seeds import run_seed
from swarmd.sim.world import World

SEEDS = int(os.environ.get("SWARMD_SEEDS", "100"))
GROUP = 20
FAULTS = (
    "break_disk",
    "break_link",
    "cut",
    "cut_one_way",
    "deafen",
    "desert",
    "directory_away",
    "dismiss",
    "dismissal_accepted",
    "dismissal_refused",
    "doom",
    "drain",
    "fail",
    "forge",
    "freeze",
    "gap",
    "go_on",
    "handoff",
    "hurry",
    "join",
    "kill_coordinator",
    "kill_hop",
    "leave",
    "lie",
    "moved_away",
    "pretend",
    "release",
    "restart",
    "restart_everything",
    "slow_node",
    "slow_path",
    "starve",
    "step_clock",
    "vanish",
)
FOUND = (7041, 80110, 405162)
"""Seeds beyond those of every run that have failed once."""
FINGERPRINT = """
import hashlib
from swarmd.sim.world import World
for seed in (2, 3, 11):
    world, sent = World(seed), hashlib.sha256()
    def watch(src, dst, batch, world=world, sent=sent, told=world.network.watch):
        what = [(type(frame).__name__, getattr(frame, "session", b"")) for frame in batch]
        sent.update(repr((world.timeline.now, src, dst, what)).encode())
        told(src, dst, batch)
    world.network.watch = watch
    world.run()
    print(world.timeline.events, world.timeline.now, world.invariants.opens, sorted(world.history))
    print([(repr(client), client.ended_at) for client in world.clients], sent.hexdigest())
"""


@cache
def lived(seed: int) -> tuple[Counter[str], str]:
    _, history, wrong = run_seed(seed)
    return history, wrong


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_whatever_befalls_nodes_requests_end_well_and_leave_nothing(first: int) -> None:
    for seed in range(first, min(first + GROUP, SEEDS)):
        assert not lived(seed)[1], f"{lived(seed)[1]}\nagain: python -m swarmd.sim {seed}"


@pytest.mark.parametrize("seed", FOUND)
def test_what_failed_once_does_not_again(seed: int) -> None:
    assert not lived(seed)[1]


def test_every_kind_of_fault_happens() -> None:
    total: Counter[str] = Counter()
    for seed in range(min(SEEDS, 100)):
        total += lived(seed)[0]
    assert not [fault for fault in FAULTS if not total[fault]]
    assert total["kill_hop"] >= min(SEEDS, 100) // 2


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    def story(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-W", "ignore", "-c", FINGERPRINT]
        done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        return done.stdout

    told = story("1")
    assert told.count("client") >= 3
    assert told == story("2")


def test_in_fair_weather_nothing_is_repaired_or_asked_for_twice() -> None:
    world = World(7)
    for start, end in ((0, 1), (0, 1), (1, world.num_blocks), (1, world.num_blocks)):
        world.add(start, end)
    try:
        world.start()
        clients = [world.client(tuple(range(20)), 20) for _ in range(3)]
        for client in clients:
            client.begin()
        world.check_clients()
        assert [client.ended for client in clients] == ["length"] * 3
        assert all(client.calls <= 2 for client in clients), "one, or two with a redirect"
        assert world.invariants.opens == 3
        world.check_rest()
    finally:
        world.close()
