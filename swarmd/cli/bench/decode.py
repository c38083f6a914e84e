"""Scenario `decode`: one session over the nodes, against one process with one node's threads.

With a single session only one node computes at a time, so its threads are what is compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from swarmd.cli.bench import baselines, models
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.concurrency import rounds
from swarmd.cli.bench.crowd import Crowd, CrowdRun, Figures, medians
from swarmd.cli.bench.readings import Meter
from swarmd.cli.bench.report import Column, Report, Row, compare
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import AsyncClient

DEFAULTS = Settings(budget_s=300.0)
COLUMNS = (
    Column("sessions", "sessions", "d"),
    Column("decode_tokens_per_s", "tokens/s", ".2f"),
    Column("generate_tokens_per_s", "transformers.generate, tokens/s", ".2f"),
    Column("ratio_to_generate", "ratio", ".3f"),
    Column("forward_ms", "forward, ms per token and hop", ".2f"),
    Column("own_wall_ms", "besides, wall ms", ".2f"),
    Column("own_cpu_ms", "besides, CPU ms", ".2f"),
    Column("ttft_p50_s", "first token s", ".3f"),
)


def run(run: Run) -> Report:
    """Measure the swarm, then one process."""
    settings, model = run.settings, run.model()
    report = Report(f"{settings.model} {settings.dtype}, one session", COLUMNS)
    prompts = models.prompts(model, 1, settings.prompts[0])
    with run.swarm(model, model.spans(settings.stages)) as nodes:
        crowds = asyncio.run(_measure(run, report, nodes, prompts))
    row: Row = {"sessions": 1, **medians([one_session(crowd) for crowd in crowds])}
    report.rows.append(row)
    first = crowds[0].sessions[0].ids
    again = [(crowd.sessions[0].ids, first) for crowd in crowds[1:]]
    if again:
        report.comparisons.append(compare("later rounds", "the first", again, must_hold=True))
    if settings.baselines:
        plain, ids = baselines.generate(
            run, model, [prompts], settings.tokens, threads=settings.threads, rounds=settings.rounds
        )
        report.baselines.append(plain)
        row["generate_tokens_per_s"] = baselines.rate(plain, 1)
        row["ratio_to_generate"] = ratio(row["decode_tokens_per_s"], row["generate_tokens_per_s"])
        if ids:
            exact = settings.dtype == "float32"
            pair = [(first, ids[0][0])]
            report.comparisons.append(
                compare("the session", baselines.GENERATE, pair, must_hold=exact)
            )
    return report


async def _measure(
    run: Run, report: Report, nodes: LocalSwarm, prompts: Sequence[Sequence[int]]
) -> list[CrowdRun]:
    async with AsyncClient(nodes.addresses[0], timeout=600.0) as client, Meter(nodes.nodes) as m:
        run.step("warm-up")
        await Crowd(client, m, prompts, 8).run()
        crowds = await rounds(run, report, client, m, prompts, "one session")
        return crowds or [await Crowd(client, m, prompts, run.settings.tokens).run()]


def one_session(crowd: CrowdRun) -> Figures:
    """Return the figures, with what a daemon costs besides `Stage.forward` per token and hop."""
    works, session = crowd.decoding or crowd.whole, crowd.sessions[0]
    shares = sum(work.steps for work in works) or 1.0
    period = (session.times[-1] - session.times[0]) / max(1, len(session.times) - 1)
    forward = sum(work.busy_s for work in works) / shares
    return crowd.figures() | {
        "forward_ms": 1000 * forward,
        "own_wall_ms": 1000 * (period / len(works) - forward),
        "own_cpu_ms": 1000 * sum(work.cpu_s - work.forward_cpu_s for work in works) / shares,
    }
