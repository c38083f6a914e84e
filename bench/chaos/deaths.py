"""Nodes that die at once: one, two in a row, all of them."""

from __future__ import annotations

import asyncio
import time

from bench.chaos.lab import Lab, until
from bench.chaos.load import Load
from bench.chaos.verdict import Bar, Calm, Findings, percentile, spread
from swarmd.client import AsyncClient
from swarmd.core.errors import SwarmdError

PLACES = ("first", "middle", "last", "coordinator")
KILL_AT = 25
MARGIN = 20
"""Tokens that must have come before a kill in decode, and come after it."""


async def kill(lab: Lab) -> Findings:
    """SIGKILL of a hop or the coordinator, in decode and in prefill."""
    found = Findings(runs=0, counted=0)
    calms: dict[tuple[str, bool], Calm] = {}
    stalls: list[float] = []
    wanted = lab.settings.runs or 8
    same: list[float] = []
    by_place: dict[str, list[float]] = {}
    while found.counted < wanted and found.runs < 2 * wanted:
        place = PLACES[found.runs % len(PLACES)]
        phase = "prefill" if (found.runs // len(PLACES)) % 2 else "decode"
        redirect = place != "coordinator"
        work = lab.work(allow_redirect=redirect)
        if phase == "prefill":
            work = lab.work(
                prompts=lab.long_prompts, tokens=24, allow_redirect=redirect, shared=False
            )
        await lab.revive()
        # Who has just died is avoided for a while, so that prompts crowd elsewhere: in prefill what
        # is usual is measured anew for each kill, after short requests that open the links.
        if phase == "prefill":
            await lab.calm(lab.work(tokens=8, allow_redirect=redirect), rounds=0)
            calms[phase, redirect] = await lab.calm(work, rounds=int(found.runs < 8))
        elif (phase, redirect) not in calms:
            calms[phase, redirect] = await lab.calm(work)
        calm = calms[phase, redirect]
        target = lab.rng.randrange(lab.settings.clients)
        async with lab.load(work) as load:
            counted = await _kill_one(lab, load, place, phase, target, calm)
        found.runs += 1
        found.streams += load.streams
        if not counted:
            continue
        found.counted += 1
        of_run = [calm.stall(s) * 1000 for s in load.streams if s.hit_at and s.done]
        stalls += of_run
        by_place.setdefault(f"{place}, {phase}", []).extend(of_run)
        if phase == "prefill":
            same += [calm.later_than_before(s) * 1000 for s in load.streams if s.hit_at and s.done]
    found.calm, found.stalls = calms.get(("decode", True)), stalls
    found.facts["stalls_ms"] = {p: [round(ms, 1) for ms in of] for p, of in by_place.items()}
    found.facts["stalls_p50_p99_ms"] = {p: spread(ms) for p, ms in sorted(by_place.items())}
    found.facts["first_token_later_than_for_the_same_prompt_before_ms"] = [*map(round, same)]
    found.bars = [
        Bar("stall_p50_ms", percentile(stalls, 50), 300),
        Bar("stall_p99_ms", percentile(stalls, 99), 1000),
    ]
    return found


async def _kill_one(lab: Lab, load: Load, place: str, phase: str, target: int, calm: Calm) -> bool:
    """Kill once; whether it came where it was meant to, and had something to mend."""
    if phase == "decode":
        if not await load.all_have(KILL_AT, [target]):
            return False
    else:
        await load.routed(target)
        await asyncio.sleep(0.3 * min(calm.ttft.values()))
    victim, stream = victim_of(load, target, place), load.stream(target)
    before = len(stream.ids)
    hit = load.mark(victim)
    lab.node(victim).kill()
    await load.over()
    after = len(stream.ids) - before
    timely = min(before, after) >= MARGIN if phase == "decode" else before == 0
    return stream in hit and timely and stream.repairs + stream.resumes >= 1


def victim_of(load: Load, client: int, place: str) -> int:
    """The process to hit, from what the client's own stream says of its route."""
    generation = load.generation(client)
    if place == "coordinator":
        assert generation.coordinator is not None
        return generation.coordinator.pid
    return generation.route[{"first": 0, "middle": 1, "last": 2}[place]].pid


async def double(lab: Lab) -> Findings:
    """A second kill during the repair of the first: of another hop, or of the last other holder."""
    found = Findings(runs=0, counted=0, may_fail=True)
    latest = 0.0
    for turn in range(lab.settings.runs or 4):
        await lab.revive()
        work = lab.work()
        found.calm = found.calm or await lab.calm(work)
        nobody = turn % 4 == 3
        target = lab.rng.randrange(lab.settings.clients)
        async with lab.load(work) as load:
            if not await load.all_have(KILL_AT, [target]):
                continue
            first = victim_of(load, target, "middle")
            second = other_holder(lab, first)
            if not nobody:
                second = victim_of(load, target, ("first", "last")[turn % 2])
            for pid, pause in ((first, lab.rng.uniform(0.01, 0.15)), (second, 0.0)):
                load.mark(pid)
                lab.node(pid).kill()
                await asyncio.sleep(pause)
            killed = time.monotonic()
            await load.over()
            if nobody:
                latest = time.monotonic() - killed
        found.runs += 1
        found.counted += any(s.hit_at for s in load.streams)
        found.streams += load.streams
        failed = [s for s in load.streams if s.error]
        key = "errors_with_no_holder" if nobody else "errors_with_a_holder"
        found.facts[key] = found.facts.get(key, 0) + len(failed)
    found.facts["no_holder_answer_s"] = round(latest, 1)
    found.bars = [
        Bar("errors_with_a_holder", found.facts.get("errors_with_a_holder", 0), 0),
        Bar("no_holder_answer_s", latest, 35.0),
    ]
    return found


def other_holder(lab: Lab, pid: int) -> int:
    """The process that has the same blocks as this one."""
    node = lab.node(pid)
    span = node.args[node.args.index("--blocks") + 1]
    return next(n.pid for n in lab.nodes.nodes if n is not node and n.alive and span in n.args)


async def all_killed(lab: Lab) -> Findings:
    """Everybody killed at once, and started again at once, under load."""
    await lab.revive()
    work = lab.work()
    found = Findings(calm=await lab.calm(work), may_fail=True)
    async with lab.load(work) as load:
        await load.all_have(KILL_AT, [0])
        load.mark_all()
        for node in lab.nodes.nodes:
            node.kill()
        for node in lab.nodes.nodes:
            node.restart()
        began = time.monotonic()
        ready, served = await asyncio.gather(_each_ready(lab), _served(lab, began))
        await load.over()
    attempts = await _attempts(lab, sum(s.done for s in load.streams) + 1)
    found.streams = load.streams
    found.facts = {
        "attempts_per_request": attempts,
        "start_up_s": {n.address: round(s, 1) for n, s in zip(lab.nodes.nodes, ready, strict=True)},
        "last_start_up_s": round(max(ready), 2),
        "first_answer_s": round(served, 2),
        "streams_that_went_on": sum(s.done for s in load.streams),
        "requests_that_ended_in_a_typed_error": sum(bool(s.error) for s in load.streams),
    }
    found.bars = [
        Bar("answer_after_last_start_up_s", max(0.0, served - max(ready)), 5.0),
        Bar("attempts_per_request", attempts, 1.2),
    ]
    return found


async def _attempts(lab: Lab, served: int) -> float:
    """Routes opened since all were started again, for each request that came to its end."""
    counters = (await lab.counters()).values()
    return round(sum(c["coordinator_attempts"] for c in counters) / served, 3)


async def _each_ready(lab: Lab) -> list[float]:
    """Seconds from each daemon's start to its line that says that it serves."""

    async def one(index: int) -> float:
        node = lab.nodes.nodes[index]
        await until(node.is_ready)
        return time.monotonic() - node.started_at

    took = await asyncio.gather(*map(one, range(len(lab.nodes.nodes))))
    return list(took)


async def _served(lab: Lab, began: float) -> float:
    """Seconds until a client that knows all nodes gets an answer."""
    while True:
        async with AsyncClient(lab.nodes.known, timeout=10.0, connect_timeout=0.5) as client:
            try:
                await client.complete(lab.prompts[0], max_tokens=2, ignore_eos=True)
                return time.monotonic() - began
            except SwarmdError:
                await asyncio.sleep(0.05)
