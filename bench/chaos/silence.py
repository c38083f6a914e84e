"""Nodes that are there and do not answer, or hardly: stopped for a while, or slow."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.chaos.deaths import KILL_AT, PLACES, victim_of
from bench.chaos.lab import Lab
from bench.chaos.load import Load
from bench.chaos.verdict import Bar, Findings, percentile
from swarmd.cli.local_swarm import LocalNode
from swarmd.client import AsyncClient
from swarmd.core.errors import SwarmdError

BACK_S = 10.0
SLOW_S = 20.0
SLICE_S = 0.2
SLOWER = 20
SLOWED = ("middle", "first")
"""Where the slow peer has its place, in turn."""


async def stop(lab: Lab) -> Findings:
    """SIGSTOP for 20 s, then SIGCONT: the zombie changes nothing and is back soon."""
    found = Findings(runs=0, counted=0)
    backs: list[float] = []
    used: list[float] = []
    for turn in range(lab.settings.runs or 2):
        await lab.revive()
        found.calm = found.calm or await lab.calm(lab.work())
        target = lab.rng.randrange(lab.settings.clients)
        async with lab.load(lab.work(again=True)) as load:
            if not await load.all_have(KILL_AT, [target]):
                continue
            victim = victim_of(load, target, PLACES[(turn + 1) % 3])
            hit, zombie = load.mark(victim), lab.node(victim)
            zombie.signal(signal.SIGSTOP)
            await asyncio.sleep(lab.settings.silence_s)
            zombie.signal(signal.SIGCONT)
            backs.append(await answers(lab, victim))
            used.append(await back(load, victim, lab.settings.patience_s))
            load.stop()
        found.runs += 1
        found.counted += bool(hit)
        found.streams += load.streams
    found.facts = {
        "back_s": [round(s, 1) for s in backs],
        "used_again_s": [round(s, 1) for s in used],
        "waited_for_that_s": lab.settings.patience_s,
    }
    found.bars = [
        Bar("stall_p99_ms", percentile(found.stalls_ms(), 99), 2000),
        Bar("back_s", max(backs, default=None), BACK_S),
    ]
    return found


async def answers(lab: Lab, pid: int, limit: float = 60.0) -> float:
    """Seconds until that node drives a request to its end, for a client that knows no other."""
    began, prompt = time.monotonic(), lab.prompts[0]
    while time.monotonic() - began < limit:
        async with AsyncClient(lab.node(pid).address, timeout=10.0) as client:
            try:
                await client.complete(prompt, max_tokens=8, ignore_eos=True, allow_redirect=False)
                break
            except SwarmdError:
                await asyncio.sleep(0.1)
    return time.monotonic() - began


async def back(load: Load, pid: int, limit: float) -> float:
    """Seconds until a request that began from now on is computed by that process."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        if any(pid in s.route and s.began > began and s.ids for s in load.streams):
            break
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def slow(lab: Lab) -> Findings:
    """One peer runs a twentieth of the time: a middle hop, then a first one that coordinates."""
    await lab.revive()
    found = Findings(calm=await lab.calm(lab.work()), runs=0, counted=0)
    assert found.calm is not None
    through = begun = coordinated = 0
    gaps: dict[str, list[float]] = {}
    for turn in range(lab.settings.runs or 1):
        place = SLOWED[turn % len(SLOWED)]
        await lab.revive()
        async with lab.load(lab.work(again=True)) as load:
            await load.all_have(KILL_AT, [0])
            victim = victim_of(load, 0, place)
            coordinated += victim == victim_of(load, 0, "coordinator")
            load.mark(victim)
            began = time.monotonic()
            with slowed(lab.node(victim)):
                await asyncio.sleep(SLOW_S)
                load.stop()
                await load.over()
        found.runs += 1
        found.counted += 1
        found.streams += load.streams
        through += sum(victim in s.route for s in load.streams if s.began > began)
        begun += sum(s.began > began for s in load.streams)
        gaps.setdefault(place, []).extend(
            b - a
            for s in load.streams
            for a, b in zip(s.times, s.times[1:], strict=False)
            if b > began
        )
    together = [gap for each in gaps.values() for gap in each]
    p99 = max(percentile(each, 99) for each in gaps.values())
    found.facts = {
        "token_p50_ms": round(percentile(together, 50) * 1000),
        "token_p99_ms": round(p99 * 1000),
        "token_p99_ms_by_place": {
            place: round(percentile(each, 99) * 1000) for place, each in gaps.items()
        },
        "runs_in_which_it_coordinated": coordinated,
        "requests_through_it": through,
        "requests_begun_since": begun,
    }
    found.bars = [Bar("p99_to_undisturbed_p99", p99 / max(1e-3, found.calm.gap_p99), 3.0)]
    return found


@contextmanager
def slowed(node: LocalNode) -> Iterator[None]:
    """Let a process run only a part of each slice of time."""
    over = threading.Event()

    def toggle() -> None:
        while not over.is_set():
            node.signal(signal.SIGCONT)
            time.sleep(SLICE_S / SLOWER)
            node.signal(signal.SIGSTOP)
            over.wait(SLICE_S - SLICE_S / SLOWER)
        node.signal(signal.SIGCONT)

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
