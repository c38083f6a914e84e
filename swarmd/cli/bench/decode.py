"""Scenario `decode`: one session over the nodes, against one process with one node's threads.

With a single session only one node computes at a time, so its threads are what is compared.
"""

from __future__ import annotations

import asyncio

from swarmd.cli.bench import baselines, memory, models
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.crowd import medians
from swarmd.cli.bench.lab import Ids, Lab, Prompts
from swarmd.cli.bench.report import Bar, Column, Report, Row, compare
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.local_swarm import LocalSwarm

DEFAULTS = Settings(tokens=128, budget_s=420.0)
"""Many tokens: what a session and the looks at the counters cost is shared by them."""
COLUMNS = (
    Column("sessions", "sessions", "d"),
    Column("decode_tokens_per_s", "tokens/s", ".2f"),
    Column("generate_tokens_per_s", "transformers.generate, tokens/s", ".2f"),
    Column("ratio_to_generate", "ratio", ".3f"),
    Column("forward_ms", "forward, ms per token and hop", ".2f"),
    Column("own_wall_ms", "besides, wall ms", ".2f"),
    Column("own_cpu_ms", "besides, CPU ms", ".2f"),
    Column("ttft_p50_s", "first token s", ".3f"),
    Column("memory_latency_ns", "a load that misses all caches, ns", ".0f"),
)


_ASKED_OF = ("model", "dtype", "stages", "threads")


def bars(settings: Settings, row: Row) -> list[Bar]:
    """Return what is asked of the figures; of no others than those of the usual model and nodes."""
    if any(getattr(settings, name) != getattr(DEFAULTS, name) for name in _ASKED_OF):
        return []
    against, cpu = row.get("ratio_to_generate"), row.get("own_cpu_ms")
    return [
        Bar("tokens/s against transformers.generate", against, at_least=0.98),
        Bar("CPU ms per token and hop besides the forward", cpu, at_most=1.5),
    ]


def run(run: Run) -> Report:
    """Measure the swarm, then one process."""
    settings = run.settings
    run.plan(4 + settings.rounds)
    model = run.model()
    report = Report(f"{settings.model} {settings.dtype}, one session", COLUMNS)
    prompts = models.prompts(model, 1, settings.prompts[0])
    with run.swarm(model, model.spans(settings.stages), *run.without_cache()) as nodes:
        run.wait_ready(nodes)
        ids = asyncio.run(_measure(run, report, nodes, prompts))
    if report.rows:
        report.rows[0] |= memory.figures()
    if settings.baselines and ids:
        _baseline(run, report, model, prompts, ids[0])
    report.bars = bars(settings, report.rows[0] if report.rows else {})
    return report


async def _measure(run: Run, report: Report, nodes: LocalSwarm, prompts: Prompts) -> list[Ids]:
    seen: list[Ids] = []
    async with Lab(run, report, nodes) as lab:
        await lab.warm_up(prompts)
        crowds = await lab.rounds(prompts, "one session")
        if crowds:
            report.rows.append({"sessions": 1, **medians([c.figures() for c in crowds])})
            lab.compare_rounds("rounds", crowds, seen)
    return seen


def _baseline(run: Run, report: Report, model: models.Model, prompts: Prompts, ids: Ids) -> None:
    s, row = run.settings, report.rows[0]
    job = baselines.Job(baselines.GENERATE, [prompts], s.tokens, s.rounds)
    (plain,) = baselines.measure(run, model, [job], threads=s.threads)
    report.baselines.append(plain.baseline)
    row["generate_tokens_per_s"] = baselines.rate(plain.baseline, 1)
    row["ratio_to_generate"] = ratio(row["decode_tokens_per_s"], row["generate_tokens_per_s"])
    if plain.ids:
        exact = s.dtype == "float32"
        pair = [(ids, plain.ids[0][0])]
        report.comparisons.append(compare("the session", job.name, pair, must_hold=exact))
