"""Scenario `replicas`: one span held twice, by equal machines and by unequal ones.

Machines are made slow by letting their daemons run for a share of the time (`throttle`): the cores
here are fewer than the machines, and the span that is doubled is to be the slow one.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass

from swarmd.cli.bench import models
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.crowd import CrowdRun, Figures, medians
from swarmd.cli.bench.lab import Ids, Lab, Prompts
from swarmd.cli.bench.report import Chart, Column, Report, compare
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.bench.throttle import throttled
from swarmd.cli.local_swarm import LocalSwarm

DEFAULTS = Settings(sessions=(16,), tokens=32, rounds=2, checked=2, budget_s=900.0)
COLUMNS = (
    Column("machines", "machines", "s"),
    Column("decode_tokens_per_s", "tokens/s while all decode"),
    Column("tokens_per_s", "tokens/s, prefill included"),
    Column("ratio_to_single", "  against one holder", ".2f"),
    Column("expected", "  expected at most", ".2f"),
    Column("work_share", "work of the last holder, share", ".2f"),
    Column("speed_share", "its speed, share", ".2f"),
    Column("slowest_to_mean", "slowest session to the mean", ".2f"),
)
CHART = Chart(
    x="machines",
    series={"tokens_per_s": "tokens/s"},
    y_title="tokens/s of all sessions, prefill included",
    x_title="machines that hold the second span",
    bars=True,
)


@dataclass(frozen=True, slots=True)
class Case:
    """Speeds of the machines: of the first span, and of each holder of the second."""

    name: str
    first: float
    holders: tuple[float, ...]


CASES = (
    Case("one", 0.7, (0.3,)),
    Case("two equal", 0.7, (0.3, 0.3)),
    Case("unequal, 2 to 1", 0.7, (0.4, 0.2)),
)


def run(run: Run) -> Report:
    """Measure each case on a swarm of its own."""
    s = run.settings
    run.plan(1 + len(CASES) * (2 + s.rounds))
    model = run.model()
    title = f"{s.model} {s.dtype}: {s.sessions[0]} sessions, the second of two spans held twice"
    report = Report(title, COLUMNS, chart=CHART)
    prompts = models.prompts(model, s.sessions[0], s.prompts[0])
    ids = [_case(run, report, model, case, prompts) for case in CASES]
    _ratios(report)
    pairs = [pair for other in ids[1:] for pair in zip(other, ids[0], strict=False)]
    if pairs:
        report.comparisons.append(compare("two holders", "one", pairs, must_hold=True))
    return report


def _case(run: Run, report: Report, model: models.Model, case: Case, prompts: Prompts) -> list[Ids]:
    first, second = model.spans(2)
    spans = (first, *[second] * len(case.holders))
    with ExitStack() as stack:
        nodes = stack.enter_context(run.swarm(model, spans, *run.without_cache()))
        speeds = (case.first, *case.holders)
        pids = [node.pid for node in nodes.nodes]
        stack.enter_context(throttled(dict(zip(pids, speeds, strict=True))))
        run.wait_ready(nodes)
        return asyncio.run(_measure(run, report, nodes, case, prompts))


async def _measure(
    run: Run, report: Report, nodes: LocalSwarm, case: Case, prompts: Prompts
) -> list[Ids]:
    seen: list[Ids] = []
    async with Lab(run, report, nodes) as lab:
        await lab.warm_up(prompts)
        crowds = await lab.rounds(prompts, f"second span held by {case.name}")
        if crowds:
            figures = medians([_figures(crowd, case) for crowd in crowds])
            report.rows.append({"machines": case.name, **figures})
            lab.compare_rounds(f"second span held by {case.name}", crowds, seen)
    return seen


def _figures(crowd: CrowdRun, case: Case) -> Figures:
    holders = crowd.whole[1:]
    tokens = sum(work.tokens for work in holders)
    # The first span is given no more than what its own machine can do.
    return crowd.figures() | {
        "work_share": ratio(holders[-1].tokens, tokens),
        "speed_share": case.holders[-1] / sum(case.holders),
        "expected": min(case.first, sum(case.holders)) / CASES[0].holders[0],
    }


def _ratios(report: Report) -> None:
    singles = [row["tokens_per_s"] for row in report.rows if row["machines"] == CASES[0].name]
    for row in report.rows:
        row["ratio_to_single"] = ratio(row["tokens_per_s"], singles[0] if singles else None)
