"""The net between nodes is cut without a word: both ways, one way, and healed after a while."""

from __future__ import annotations

import asyncio

from bench.chaos import namespaces
from bench.chaos.deaths import KILL_AT, PLACES, victim_of
from bench.chaos.lab import Lab
from bench.chaos.silence import BACK_S, answers
from bench.chaos.verdict import Bar, Findings, percentile

WAYS = (
    "both ways",
    "it only hears",
    "it only speaks",
    "from its next hop",
)


async def partition(lab: Lab) -> Findings:
    """A hop is cut off for 20 s: both ways, one way, the other way, from its neighbour alone."""
    if not namespaces.inside():
        return Findings(skipped="this scenario runs within network namespaces of its own")
    found = Findings(runs=0, counted=0)
    backs: dict[str, float] = {}
    for turn in range(lab.settings.runs or len(WAYS)):
        way = WAYS[turn % len(WAYS)]
        await lab.revive()
        found.calm = found.calm or await lab.calm(lab.work())
        target = lab.rng.randrange(lab.settings.clients)
        async with lab.load(lab.work(again=True)) as load:
            if not await load.all_have(KILL_AT, [target]):
                continue
            victim = victim_of(load, target, PLACES[(turn // len(WAYS) + 1) % 3])
            following = load.generation(target).route[-1].pid
            hit = load.mark(victim)
            _cut(lab, victim, following, way)
            await asyncio.sleep(lab.settings.silence_s)
            namespaces.heal()
            backs[f"{turn}: {way}"] = await answers(lab, victim)
            load.stop()
        found.runs += 1
        found.counted += bool(hit)
        found.streams += load.streams
    found.facts = {"back_s": {way: round(s, 1) for way, s in backs.items()}}
    found.bars = [
        Bar("stall_p99_ms", percentile(found.stalls_ms(), 99), 2000),
        Bar("back_s", max(backs.values(), default=None), BACK_S),
    ]
    return found


def _cut(lab: Lab, victim: int, following: int, way: str) -> None:
    index = lab.nodes.nodes.index(lab.node(victim))
    others = [i for i in range(namespaces.NODES) if i != index]
    if way == WAYS[3]:
        beyond = lab.nodes.nodes.index(lab.node(following))
        namespaces.cut(index, [namespaces.address(beyond)])
        namespaces.cut(beyond, [namespaces.address(index)])
        return
    if way in WAYS[:2]:
        namespaces.cut(index, [*map(namespaces.address, others), namespaces.HUB])
    if way in (WAYS[0], WAYS[2]):
        for other in others:
            namespaces.cut(other, [namespaces.address(index)])
        namespaces.cut_clients(index)
