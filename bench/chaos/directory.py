"""The directory is disturbed: its process dies again and again, doors are gone, clocks differ."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from glob import glob
from typing import Any

from bench.chaos.lab import Lab, until
from bench.chaos.verdict import Bar, Findings, percentile
from swarmd.cli.local_swarm import LocalNode

EVERY_S = 5.0
FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"


def dht_children(pid: int) -> Iterator[int]:
    """The directory processes of a node."""
    import psutil

    for child in psutil.Process(pid).children():
        if "dht_child" in " ".join(child.cmdline()):
            yield child.pid


async def dht_killed(lab: Lab) -> Findings:
    """Every 5 s one node's directory process is killed; in the end all of them at once."""
    await lab.revive()
    found = Findings(calm=await lab.calm(lab.work()), runs=0, counted=0)
    began, lasts = time.monotonic(), 120.0 if lab.settings.full else 30.0
    async with lab.load(lab.work(again=True)) as load:
        await load.began(lab.settings.clients)
        while time.monotonic() < began + lasts:
            last = time.monotonic() + EVERY_S >= began + lasts
            chosen = lab.nodes.nodes if last else [lab.rng.choice(lab.nodes.nodes)]
            found.runs += 1
            for node in chosen:
                for child in dht_children(node.pid):
                    os.kill(child, signal.SIGKILL)
                    found.counted += 1
            load.mark_all()
            await asyncio.sleep(EVERY_S)
        load.stop()
    found.streams = load.streams
    killed, found.counted = found.counted, found.runs
    healed = time.monotonic()
    await lab.settle()
    found.facts = {
        "children_killed": killed,
        "seen_again_s": round(time.monotonic() - healed, 1),
    }
    moved = sum(s.repairs + s.resumes for s in load.streams)
    found.bars = [
        Bar("repairs_and_resumes", moved, 0),
        Bar("stall_p99_ms", percentile(found.stalls_ms(), 99), 250),
    ]
    return found


async def bootstraps_gone(lab: Lab) -> Findings:
    """The nodes named in --peers are gone for good; a restarted one comes back by its memory."""
    await lab.revive()
    found = Findings(calm=await lab.calm(lab.work()))
    doors, rest = lab.nodes.nodes[:2], lab.nodes.nodes[2:]
    comer = next(n for n in rest if "3:6" in n.args)
    usual, usually_ready = await _comes_back(lab, comer)
    lasts = 600.0 if lab.settings.full else 40.0  # longer than a lease in any case
    async with lab.load(lab.work(again=True)) as load:
        await load.began(lab.settings.clients)
        for door in doors:
            load.mark(door.pid)
            door.kill()
        await asyncio.sleep(lasts)
        failed = sum(bool(s.error) for s in load.streams)
        load.mark_all()
        seen, ready = await _comes_back(lab, comer)
        load.stop()
    found.streams = load.streams
    found.facts = {
        "lasted_s": lasts,
        "ready_s": round(ready, 1),
        "seen_by_all_s": round(seen, 1),
        "with_all_doors_s": round(usual, 1),
        "with_all_doors_ready_s": round(usually_ready, 1),
    }
    found.bars = [
        Bar("seen_by_all_s_less_usual_start", max(0.0, seen - usually_ready), 10.0),
        Bar("failed_before_the_restart", failed, 0),
    ]
    return found


async def _comes_back(lab: Lab, node: LocalNode) -> tuple[float, float]:
    """Kill a node and start it; seconds from its start until all others see it, and until ready."""
    node.kill()
    node.restart()
    others = [n.address for n in lab.nodes.nodes if n.alive and n is not node]
    ready = 0.0
    while True:
        found = await asyncio.gather(*map(lab.status, others))
        now = time.monotonic() - node.started_at
        ready = ready or (now if node.is_ready() else 0.0)
        if all(
            one and any(p.pid == node.pid and p.state == "serving" for p in one.peers)
            for one in found
        ):
            break
        await asyncio.sleep(0.05)
    await until(node.is_ready)  # with that its new address is known
    return now, ready or time.monotonic() - node.started_at


async def clock(lab: Lab) -> Findings:
    """A node whose clock is wrong joins: nobody else is disturbed, and it says what is wrong."""
    library = next(iter(glob(FAKETIME)), None)
    if library is None:
        return Findings(skipped="libfaketime is not installed (apt-get install libfaketime)")
    await lab.revive()
    found = Findings(calm=await lab.calm(lab.work()), runs=0, counted=0)
    said: dict[str, Any] = {}
    for skew in ("+10s", "-10s", "+1h"):
        fake = ("env", f"LD_PRELOAD={library}", f"FAKETIME={skew}", "DONT_FAKE_MONOTONIC=1")
        node = lab.nodes.add("3:6", prefix=fake)
        async with lab.load(lab.work(again=True)) as load:
            began = time.monotonic()
            await until(partial(_decided, node, began + 20))
            await asyncio.sleep(5.0)
            load.mark_all()
            load.stop()
        seen = await asyncio.gather(*map(lab.status, lab.nodes.addresses[:6]))
        said[skew] = {
            "alive": node.alive,
            "serves": node.is_ready(),
            "seen_by": sum(any(p.pid == node.pid for p in s.peers) for s in seen if s),
            "sees": len(s.peers) if (s := await lab.status(node.address or "127.0.0.1:1")) else 0,
            "says": _about_clocks(node.log()),
        }
        found.runs += 1
        found.counted += 1
        found.streams += load.streams
        node.kill()
        lab.nodes.nodes.remove(node)
    found.facts = said
    silent = sum(not s["says"] for skew, s in said.items() if skew != "+2s" and s["seen_by"] < 6)
    found.bars = [Bar("refused_without_a_word_about_clocks", silent, 0)]
    return found


def _decided(node: LocalNode, until: float) -> bool:
    return node.is_ready() or not node.alive or time.monotonic() > until


def _about_clocks(log: str) -> str:
    lines = [line for line in log.splitlines() if "clock" in line.lower()]
    return lines[-1][:300] if lines else ""
