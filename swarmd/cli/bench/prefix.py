"""Scenario `prefix`: agents that share a long system prompt, with the prefix cache and without.

Without it a few agents are measured and the time is scaled to all: it grows with their number.
"""

from __future__ import annotations

import asyncio

from swarmd.cli.bench import models
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.crowd import CrowdRun
from swarmd.cli.bench.lab import Lab, Prompts
from swarmd.cli.bench.report import Chart, Column, Report, Row, compare
from swarmd.cli.bench.run import NO_CACHE, Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.local_swarm import LocalSwarm

DEFAULTS = Settings(sessions=(32,), prompts=(2048,), tokens=32, rounds=1, budget_s=600.0)
OWN_TOKENS = 64
WITHOUT = 8
"""Agents that are measured without the cache."""
COLUMNS = (
    Column("how", "agents", "s"),
    Column("agents", "number", "d"),
    Column("seconds", "seconds until the last has ended"),
    Column("ratio_to_off", "  against the cache off, scaled", ".3f"),
    Column("cached_share", "prompt tokens from the cache", ".2f"),
    Column("ttft_p50_s", "first token p50 s", ".2f"),
    Column("ttft_p99_s", "first token p99 s", ".2f"),
)
CHART = Chart(
    x="how",
    series={"seconds_of_all": "all agents"},
    y_title="seconds until the last has ended",
    x_title="",
    bars=True,
)


def run(run: Run) -> Report:
    """Measure agents that begin at once, agents after a first one, and without the cache."""
    settings = run.settings
    count, length = settings.sessions[0], settings.prompts[0]
    title = (
        f"{settings.model} {settings.dtype}: {count} agents, {length} tokens shared, "
        f"{OWN_TOKENS} own, {settings.tokens} new"
    )
    report = Report(title, COLUMNS, chart=CHART)
    if not run.without_cache():
        report.skipped = f"this swarmd has no prefix cache: serve knows no {NO_CACHE}"
        return report
    run.plan(8)
    model = run.model()
    with run.swarm(model, model.spans(settings.stages), kv_memory="2GiB") as nodes:
        run.wait_ready(nodes)
        crowds = asyncio.run(_cached(run, report, nodes, model))
    off = WITHOUT if count > WITHOUT else count
    with run.swarm(
        model, model.spans(settings.stages), *run.without_cache(), kv_memory="2GiB"
    ) as nodes:
        run.wait_ready(nodes)
        prompts = agents(model, "after one", off, length)
        plain = asyncio.run(_plain(run, report, nodes, prompts))
    if plain:
        row = _row("cache off", plain[0], count, 0.0, prompts)
        _report_off(report, row, plain[0], crowds[0], must_hold=settings.dtype == "float32")
    return report


def agents(model: models.Model, salt: str, count: int, length: int) -> Prompts:
    """Return the prompts of agents: the same beginning, then tokens of their own."""
    shared = models.prompts(model, 1, length, salt)[0]
    own = models.prompts(model, count, OWN_TOKENS, f"{salt}, own")
    return [[*shared, *rest] for rest in own]


async def _cached(
    run: Run, report: Report, nodes: LocalSwarm, model: models.Model
) -> list[CrowdRun]:
    """Each kind of crowd has a system prompt that the swarm has not seen before."""
    count, length = run.settings.sessions[0], run.settings.prompts[0]
    async with Lab(run, report, nodes) as lab:
        await lab.warm_up(models.prompts(model, 2, OWN_TOKENS))
        prompts = agents(model, "after one", count, length)
        run.step("agents after a first one")
        with run.others.watched():
            first = await lab.crowd(prompts[:1], 1)
            rest = await lab.crowd(prompts)
        report.rows.append(_row("after a first one", rest, count, first.seconds, prompts))
        prompts = agents(model, "at once", count, length)
        run.step("agents at once")
        with run.others.watched():
            together = await lab.crowd(prompts)
        report.rows.append(_row("all at once", together, count, 0.0, prompts))
    return [rest, together]


async def _plain(run: Run, report: Report, nodes: LocalSwarm, prompts: Prompts) -> list[CrowdRun]:
    async with Lab(run, report, nodes) as lab:
        await lab.warm_up([prompt[-OWN_TOKENS:] for prompt in prompts])
        return await lab.rounds(prompts, f"{len(prompts)} agents {NO_CACHE}", rounds=1)


def _row(how: str, crowd: CrowdRun, count: int, before_s: float, prompts: Prompts) -> Row:
    figures = crowd.figures()
    asked = sum(map(len, prompts))
    seconds = crowd.seconds + before_s
    cached = sum(session.cached_tokens for session in crowd.sessions)
    return {
        "how": how,
        "agents": len(crowd.sessions),
        **figures,
        "seconds": seconds,
        "seconds_of_all": seconds * count / len(crowd.sessions),
        "cached_share": cached / asked,
    }


def _report_off(
    report: Report, off: Row, plain: CrowdRun, cached: CrowdRun, *, must_hold: bool
) -> None:
    for row in report.rows:
        row["ratio_to_off"] = ratio(row["seconds_of_all"], off["seconds_of_all"])
    report.rows.append(off)
    pairs = [(a.ids, b.ids) for a, b in zip(cached.sessions, plain.sessions, strict=False)]
    report.comparisons.append(
        compare("agents with the cache", "without", pairs, must_hold=must_hold)
    )
