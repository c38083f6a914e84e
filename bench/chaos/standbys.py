"""A hop dies while another node holds a copy of its KV: with a long context as with a short one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from bench.chaos.deaths import KILL_AT, PLACES, other_holder, victim_of
from bench.chaos.lab import Lab, long_prompt
from bench.chaos.load import Load, Work
from bench.chaos.verdict import Bar, Calm, Findings, percentile

FUNCTIONS = {"short": 2, "long": 230}
"""Of a prompt: 38 tokens, and 4,140."""
LONG_PROMPTS = 2
"""So many that differ; computing the right answers takes most of the time."""
TOKENS = 160
"""Long enough that copies are whole before the kill, and streams go on after it."""
LAG = 8
"""Positions that a copy may lack when its hop is killed."""
LAG_S = 20.0
RUNS = 6
"""By default: each place with either context. The first hop coordinates its sessions as well."""
AGAIN = 24
"""Positions that may be replayed or computed again for a session that is hit: a few on each hop,
of contexts of thousands."""
COPIERS = 2
"""Hops of a session that have copies yet when one was killed, of three."""
COPIED, COPIED_BYTES = "hop_copied_positions", "hop_copied_bytes"
MOVED = ("hop_replayed_positions", "hop_recomputed_positions")


@dataclass(slots=True)
class _Tally:
    """What came of the kills with one length of context."""

    work: Work
    calm: Calm | None = None
    runs: int = 0
    counted: int = 0
    stalls: list[float] = field(default_factory=list)
    resent: float = 0.0
    """Positions whose KV was sent after a kill, and that had been computed before it."""
    bytes_resent: float = 0.0
    """Bytes of these, and what was sent of the killed hop's blocks: nobody else has them."""
    bytes_new: float = 0.0
    """Bytes of KV that other hops have sent of new positions, as they have copies yet."""
    replayed: list[float] = field(default_factory=list)
    """Positions replayed or computed again, for each session that was hit."""
    taken_over: float = 0.0
    later: list[float] = field(default_factory=list)
    """Gaps after the one in which the hop was replaced, in ms: one node has the sessions of two."""

    def facts(self) -> dict[str, object]:
        return {
            "runs": self.runs,
            "counted": self.counted,
            "sessions_hit": len(self.stalls),
            "stalls_ms": sorted(map(round, self.stalls)),
            "undisturbed_gap_p50_p99_ms": self._undisturbed(),
            "gap_p50_p99_ms_after_the_stall": [round(percentile(self.later, p)) for p in (50, 99)],
            "kv_bytes_sent_after_the_kill": round(self.bytes_resent),
            "kv_bytes_of_new_positions": round(self.bytes_new),
            "old_positions_sent_after_the_kill": round(self.resent),
            "replayed_or_recomputed_per_session_hit": [round(n, 1) for n in self.replayed],
            "sessions_taken_over": round(self.taken_over),
        }

    def _undisturbed(self) -> list[int]:
        calm = self.calm
        return [round(gap * 1000) for gap in (calm.gap_p50, calm.gap_p99)] if calm else []


async def standby(lab: Lab) -> Findings:
    """SIGKILL of a hop whose KV another node has, 38 and 4,140 tokens into the context."""
    found = Findings(runs=0, counted=0)
    tallies = {name: _Tally(_work(lab, name)) for name in FUNCTIONS}
    for turn in range(lab.settings.runs or RUNS):
        tally = list(tallies.values())[turn % 2]
        await lab.revive()
        if tally.calm is None:
            distinct = dict.fromkeys(tally.work.prompts)
            await asyncio.to_thread(lab.witness, [(p, tally.work.tokens) for p in distinct])
            tally.calm = await lab.calm(tally.work, rounds=0)
        target = lab.rng.randrange(lab.settings.clients)
        place = PLACES[:3][(turn // 2) % 3]
        async with lab.load(tally.work) as load:
            await _kill_one(lab, load, place, target, tally)
        tally.runs += 1
        found.streams += load.streams
    found.calm = tallies["long"].calm
    found.stalls = [ms for tally in tallies.values() for ms in tally.stalls]
    found.runs = sum(t.runs for t in tallies.values())
    found.counted = sum(t.counted for t in tallies.values())
    found.facts = {name: tally.facts() for name, tally in tallies.items()}
    long, short = (percentile(tallies[name].stalls, 50) for name in ("long", "short"))
    found.bars = [
        Bar("stall_p99_ms", percentile(tallies["long"].stalls, 99), 500),
        Bar("old_positions_sent_after_the_kill", sum(t.resent for t in tallies.values()), 0),
        Bar("kv_bytes_sent_after_the_kill", sum(t.bytes_resent for t in tallies.values()), 0),
        Bar("replayed_or_recomputed_per_session_hit", _most(tallies.values()), AGAIN),
        Bar("stall_p50_of_long_less_short_ms", long - short, 100),
    ]
    return found


def _work(lab: Lab, name: str) -> Work:
    prompts = [
        long_prompt(client % LONG_PROMPTS, FUNCTIONS[name])
        for client in range(lab.settings.clients)
    ]
    return lab.work(prompts=prompts, tokens=TOKENS, standby=1, shared=False)


async def _kill_one(lab: Lab, load: Load, place: str, target: int, tally: _Tally) -> None:
    assert tally.calm is not None
    if not await load.all_have(KILL_AT) or not await _copied(lab, load, tally):
        return
    victim = victim_of(load, target, place)
    # First: positions of tokens that come while counters are read are counted as new, not missed.
    tokens = sum(len(s.ids) for s in load.streams)
    before = await lab.counters()
    hit = load.mark(victim)
    address, heir = (lab.node(p).address for p in (victim, other_holder(lab, victim)))
    lab.node(victim).kill()
    await load.over()
    after = await lab.counters()
    others = [a for a in after if a != address]

    def growth(name: str) -> float:
        return sum(after[a][name] - before[a][name] for a in others)

    new = sum(len(s.ids) for s in load.streams) - tokens
    lag = sum(before[a]["hop_copy_lag_positions"] for a in others)
    tally.counted += bool(hit)
    tally.stalls += [tally.calm.stall(s) * 1000 for s in hit if s.done]
    for stream in hit:
        gaps = [b - a for a, b in pairwise(stream.times) if b > (stream.hit_at or 0.0)]
        tally.later += [gap * 1000 for gap in gaps[gaps.index(max(gaps)) + 1 :]]
    copied, nbytes = growth(COPIED), growth(COPIED_BYTES)
    resent = old_positions(copied, new, lag, len(hit))
    bytes_resent = nbytes * resent / max(1.0, copied)
    grown = {name: after[heir][name] - before[heir][name] for name in (COPIED, COPIED_BYTES)}
    tally.resent += max(resent, grown[COPIED])
    tally.bytes_resent += max(bytes_resent, grown[COPIED_BYTES])
    tally.bytes_new += nbytes - bytes_resent
    tally.replayed.append(sum(map(growth, MOVED)) / max(1, len(hit)))
    tally.taken_over += growth("hop_taken_over")


def old_positions(copied: float, new: int, lag: float, hit: int) -> float:
    """How many of the positions that were copied after a kill had been copied before it.

    Of three spans the killed hop's has one holder left, so nobody to copy to. The others copy what
    is new, and what copies lacked; what was on its way when an epoch ended goes once more.
    """
    return max(0.0, copied - COPIERS * (new + hit) - lag)


def _most(tallies: Iterable[_Tally]) -> float | None:
    return max((each for tally in tallies for each in tally.replayed), default=None)


async def _copied(lab: Lab, load: Load, tally: _Tally) -> bool:
    """Wait until copies are there and hardly lag; False if that takes too long."""
    began = time.monotonic()
    wanted = 3 * len(tally.work.prompts)
    while time.monotonic() - began < LAG_S:
        found = (await lab.counters()).values()
        # A copy is a session on its holder as well.
        held = sum(one["hop_sessions"] for one in found)
        lag = sum(one["hop_copy_lag_positions"] for one in found)
        if held >= 2 * wanted and lag <= LAG * wanted:
            return load.running == len(tally.work.prompts)
        await asyncio.sleep(0.05)
    return False
