"""Scenario `overhead`: a model of almost no compute, so that what is left is the daemon's own cost.

Per token and hop, outside `Stage.forward`: wall time for one session, CPU time for crowds as well.
"""

from __future__ import annotations

import asyncio

from swarmd.cli.bench import baselines, models
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.crowd import medians
from swarmd.cli.bench.lab import Ids, Lab, Prompts
from swarmd.cli.bench.report import Chart, Column, Report
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.local_swarm import LocalSwarm

DEFAULTS = Settings(model="tiny", sessions=(1, 16), tokens=256, budget_s=180.0)
COLUMNS = (
    Column("sessions", "sessions", "d"),
    Column("own_wall_ms", "own wall ms per token and hop", ".3f"),
    Column("own_cpu_ms", "own CPU ms per token and hop", ".3f"),
    Column("forward_ms", "forward, wall ms per token and hop", ".3f"),
    Column("decode_tokens_per_s", "tokens/s"),
    Column("ratio_to_generate", "  against transformers.generate", ".2f"),
    Column("stage_microbatch", "mean microbatch of each"),
)
CHART = Chart(
    x="sessions",
    series={
        "own_wall_ms": "wall, besides forward",
        "own_cpu_ms": "CPU, besides forward",
        "forward_ms": "forward, wall",
    },
    y_title="ms per token and hop",
    x_title="sessions",
    bars=True,
)


def run(run: Run) -> Report:
    """Measure crowds on nodes of one block each."""
    settings = run.settings
    run.plan(4 + len(settings.sessions) * settings.rounds + settings.checked)
    model = run.model()
    title = f"{settings.model} {settings.dtype}: a daemon's own cost per token and hop"
    report = Report(title, COLUMNS, chart=CHART)
    prompts = models.prompts(model, max(settings.sessions), settings.prompts[0])
    with run.swarm(model, model.spans(settings.stages), *run.without_cache()) as nodes:
        run.wait_ready(nodes)
        asyncio.run(_measure(run, report, nodes, prompts))
    if settings.baselines:
        job = baselines.Job(baselines.GENERATE, [prompts[:1]], settings.tokens)
        (plain,) = baselines.measure(run, model, [job], threads=settings.threads)
        report.baselines.append(plain.baseline)
        for row in report.rows:
            one = baselines.rate(plain.baseline, 1)
            row["ratio_to_generate"] = ratio(row["decode_tokens_per_s"], one)
    return report


async def _measure(run: Run, report: Report, nodes: LocalSwarm, prompts: Prompts) -> None:
    seen: list[Ids] = []
    async with Lab(run, report, nodes) as lab:
        await lab.warm_up(prompts)
        for size in run.settings.sessions:
            crowds = await lab.rounds(prompts[:size], f"crowd of {size}")
            if crowds:
                report.rows.append({"sessions": size, **medians([c.figures() for c in crowds])})
                lab.compare_rounds(f"crowd of {size}", crowds, seen)
        await lab.check_alone(prompts, seen)
