"""Scenario `concurrency`: crowds of sessions of equal length, against one session and one process.

The ids of each session are compared between crowds of different sizes and with those alone.
"""

from __future__ import annotations

import asyncio

from swarmd.cli.bench import baselines, llama, models
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.crowd import medians
from swarmd.cli.bench.lab import Ids, Lab, Prompts
from swarmd.cli.bench.report import Baseline, Chart, Column, Report, Row, compare
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.local_swarm import LocalSwarm

DEFAULTS = Settings(sessions=(1, 4, 16, 32, 64), tokens=48, budget_s=900.0)
COLUMNS = (
    Column("sessions", "sessions", "d"),
    Column("decode_tokens_per_s", "tokens/s while all decode"),
    Column("tokens_per_s", "tokens/s, prefill included"),
    Column("ratio_to_one", "  against one session", ".2f"),
    Column("ratio_to_generate", "  against transformers.generate", ".2f"),
    Column("ratio_to_static", "  against its one batch of all", ".2f"),
    Column("ratio_to_continuous", "  against generate_batch", ".2f"),
    Column("ratio_to_llama", "  against llama.cpp's RPC servers", ".2f"),
    Column("all_busy", "share of time all stages compute", ".2f"),
    Column("stage_busy", "  each", ".2f"),
    Column("stage_microbatch", "mean microbatch of each"),
    Column("stage_step_ms", "its time, ms", ".0f"),
    Column("slowest_to_mean", "slowest session to the mean", ".2f"),
    Column("ttft_p50_s", "first token p50 s", ".3f"),
    Column("ttft_p99_s", "first token p99 s", ".3f"),
)
SHORT = {baselines.STATIC: "static", baselines.CONTINUOUS: "continuous", llama.NAME: "llama"}
CHART = Chart(
    x="sessions",
    series={
        "decode_tokens_per_s": "swarm",
        "static_tokens_per_s": "transformers.generate, one batch",
        "continuous_tokens_per_s": "transformers.generate_batch",
        "llama_tokens_per_s": "llama.cpp, RPC servers",
    },
    y_title="tokens/s of all sessions",
    x_title="sessions",
)


def run(run: Run) -> Report:
    """Measure crowds on one swarm, then the baselines."""
    settings = run.settings
    run.plan(4 + len(settings.sessions) * settings.rounds + settings.checked)
    model = run.model()
    report = Report(_title(settings), COLUMNS, chart=CHART)
    spans = model.spans(settings.stages)
    prompts = models.prompts(model, max(settings.sessions), settings.prompts[0])
    # The same prompts come again in other crowds: their ids are compared, not their KV reused.
    with run.swarm(model, spans, *run.without_cache()) as nodes:
        run.wait_ready(nodes)
        ids = asyncio.run(_measure(run, report, nodes, prompts))
    if settings.baselines and ids:
        _baselines(run, report, model, prompts, ids)
    return report


def _title(s: Settings) -> str:
    return (
        f"{s.model} {s.dtype}, {s.stages} nodes x {s.threads} thread, "
        f"prompt {s.prompts[0]}, {s.tokens} new tokens"
    )


async def _measure(run: Run, report: Report, nodes: LocalSwarm, prompts: Prompts) -> list[Ids]:
    """Run all crowds; returns the ids of each session."""
    seen: list[Ids] = []
    async with Lab(run, report, nodes) as lab:
        await lab.warm_up(prompts)
        for size in run.settings.sessions:
            crowds = await lab.rounds(prompts[:size], f"crowd of {size}")
            if crowds:
                report.rows.append({"sessions": size, **medians([c.figures() for c in crowds])})
                lab.compare_rounds(f"crowd of {size}", crowds, seen)
        await lab.check_alone(prompts, seen)
    _ratios_to_one(report)
    return seen


def _ratios_to_one(report: Report) -> None:
    ones = [row for row in report.rows if row["sessions"] == 1]
    for row in report.rows:
        one = ones[0]["decode_tokens_per_s"] if ones else None
        row["ratio_to_one"] = ratio(row["decode_tokens_per_s"], one)


def _baselines(
    run: Run, report: Report, model: models.Model, prompts: Prompts, ids: list[Ids]
) -> None:
    """One process with as many threads as the swarm has in all."""
    s = run.settings
    crowds = [prompts[:size] for size in s.sessions if size > 1]
    jobs = [baselines.Job(baselines.GENERATE, [prompts[:1]], s.tokens)]
    if crowds:
        names = (baselines.STATIC, baselines.CONTINUOUS)
        jobs += [baselines.Job(name, crowds, s.tokens) for name in names]
    plain, *others = baselines.measure(run, model, jobs, threads=s.stages * s.threads)
    report.baselines += [found.baseline for found in (plain, *others)]
    report.baselines.append(llama.measure(run, model, s.prompts[:1], s.tokens, s.sessions))
    if plain.ids:
        exact = s.dtype == "float32"
        pair = [(ids[0], plain.ids[0][0])]
        report.comparisons.append(compare("session 0", baselines.GENERATE, pair, must_hold=exact))
    for row in report.rows:
        row["ratio_to_generate"] = ratio(
            row["decode_tokens_per_s"], baselines.rate(plain.baseline, 1)
        )
        for baseline in report.baselines[1:]:
            _ratio(row, baseline, SHORT[baseline.name])


def _ratio(row: Row, baseline: Baseline, name: str) -> None:
    row[f"{name}_tokens_per_s"] = other = baselines.rate(baseline, row["sessions"])
    row[f"ratio_to_{name}"] = ratio(row["decode_tokens_per_s"], other)
