"""Nodes that are asked to leave: one under load, two in a row, all of them in turn."""

from __future__ import annotations

import asyncio
import signal
import time

from bench.chaos.deaths import KILL_AT, PLACES, victim_of
from bench.chaos.lab import Lab
from bench.chaos.verdict import Bar, Findings, percentile
from swarmd.cli.local_swarm import LocalNode

EXIT_S = 60.0


async def term(lab: Lab) -> Findings:
    """SIGTERM to a hop under load: it hands over and exits with 0."""
    found = Findings(runs=0, counted=0)
    codes: list[int] = []
    exits: list[float] = []
    for turn in range(lab.settings.runs or 4):
        await lab.revive()
        # Long enough that a session which is not handed over would hold the node up.
        work = lab.work(tokens=2 * lab.settings.tokens)
        found.calm = found.calm or await lab.calm(work)
        target = lab.rng.randrange(lab.settings.clients)
        async with lab.load(work) as load:
            if not await load.all_have(KILL_AT, [target]):
                continue
            victim = victim_of(load, target, PLACES[turn % 3])
            hit, leaving = load.mark(victim), lab.node(victim)
            leaving.signal(signal.SIGTERM)
            asked = time.monotonic()
            codes.append(await exit_code(leaving))
            exits.append(round(time.monotonic() - asked, 1))
        found.runs += 1
        found.counted += bool(hit)
        found.streams += load.streams
    stalls = found.stalls_ms()
    found.facts = {"exit_codes": codes, "exit_after_s": exits}
    found.bars = [
        Bar("recomputed_tokens", sum(s.recomputed for s in found.streams), 0),
        Bar("stall_p99_ms", percentile(stalls, 99), 250),
        Bar("exit_codes_other_than_0", sum(code != 0 for code in codes), 0),
    ]
    return found


async def drain_chain(lab: Lab) -> Findings:
    """A drains; 100 ms later the peer that took its sessions drains as well, to a third."""
    found = Findings(runs=0, counted=0)
    extra = lab.nodes.add("3:6")
    try:
        for _ in range(lab.settings.runs or 2):
            await lab.revive()
            work = lab.work(tokens=3 * lab.settings.tokens)
            found.calm = found.calm or await lab.calm(work)
            target = lab.rng.randrange(lab.settings.clients)
            async with lab.load(work) as load:
                if not await load.all_have(KILL_AT, [target]):
                    continue
                first = victim_of(load, target, "middle")
                load.mark(first)
                lab.node(first).signal(signal.SIGTERM)
                await asyncio.sleep(0.1)
                second = victim_of(load, target, "middle")
                if second == first:  # not moved yet: whoever else it may move to
                    second = next(
                        n.pid
                        for n in lab.nodes.nodes
                        if "3:6" in n.args and n.pid != first and n.alive
                    )
                load.mark(second)
                lab.node(second).signal(signal.SIGTERM)
                await asyncio.gather(exit_code(lab.node(first)), exit_code(lab.node(second)))
            found.runs += 1
            found.counted += 1
            found.streams += load.streams
    finally:
        extra.kill()
        lab.nodes.nodes.remove(extra)
    recomputed = sum(s.recomputed for s in found.streams)
    found.bars = [Bar("recomputed_tokens", recomputed, 0)]
    return found


async def rolling(lab: Lab) -> Findings:
    """All six restarted in turn under load."""
    await lab.revive()
    work = lab.work()
    found = Findings(calm=await lab.calm(work), runs=len(lab.nodes.nodes))
    codes: list[int] = []
    began = time.monotonic()
    async with lab.load(lab.work(again=True)) as load:
        await load.began(1)
        for node in list(lab.nodes.nodes):
            load.mark(node.pid)
            node.signal(signal.SIGTERM)
            codes.append(await exit_code(node))
            node.restart()
            await lab.ready()
            await lab.settle()
        load.stop()
    found.counted = found.runs
    found.streams = load.streams
    tries = sum(1 + s.repairs + s.resumes for s in load.streams)
    found.facts = {
        "exit_codes": codes,
        "took_s": round(time.monotonic() - began, 1),
        "attempts_per_request": round(tries / max(1, len(load.streams)), 3),
    }
    found.bars = [
        Bar("failed_requests", sum(bool(s.error) for s in load.streams), 0),
        Bar("exit_codes_other_than_0", sum(code != 0 for code in codes), 0),
        Bar("attempts_per_request", tries / max(1, len(load.streams)), 1.2),
    ]
    return found


async def exit_code(node: LocalNode) -> int:
    """Wait for a node that was asked to leave."""
    return await asyncio.to_thread(node.process.wait, EXIT_S)
