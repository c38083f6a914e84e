"""Scenario `concurrency`: crowds of sessions of equal length, against one process and against one.

The ids of each session are compared between crowds of different sizes and with those alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from swarmd.cli.bench import baselines, models
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.crowd import Crowd, CrowdRun, medians
from swarmd.cli.bench.readings import Meter
from swarmd.cli.bench.report import Baseline, Chart, Column, Report, Row, compare
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import AsyncClient

DEFAULTS = Settings(sessions=(1, 4, 16, 32, 64), tokens=48, budget_s=900.0)
COLUMNS = (
    Column("sessions", "sessions", "d"),
    Column("decode_tokens_per_s", "tokens/s while all decode"),
    Column("tokens_per_s", "tokens/s, prefill included"),
    Column("ratio_to_one", "  against one session", ".2f"),
    Column("ratio_to_generate", "  against transformers.generate", ".2f"),
    Column("ratio_to_static", "  against its one batch of all", ".2f"),
    Column("ratio_to_continuous", "  against generate_batch", ".2f"),
    Column("all_busy_at_least", "all stages compute, at least", ".2f"),
    Column("busy_min", "least busy stage", ".2f"),
    Column("microbatch_min", "mean microbatch, smallest"),
    Column("slowest_to_mean", "slowest session to the mean", ".2f"),
    Column("ttft_p50_s", "first token p50 s", ".3f"),
    Column("ttft_p99_s", "first token p99 s", ".3f"),
)
CHART = Chart(
    x="sessions",
    series={
        "decode_tokens_per_s": "swarm",
        "static_tokens_per_s": "transformers.generate, one batch",
        "continuous_tokens_per_s": "transformers.generate_batch, with prefill",
    },
    y_title="tokens/s of all sessions",
    x_title="sessions",
)


def run(run: Run) -> Report:
    """Measure crowds on one swarm, then the baselines."""
    settings, model = run.settings, run.model()
    report = Report(_title(settings), COLUMNS, chart=CHART)
    spans = model.spans(settings.stages)
    prompts = models.prompts(model, max(settings.sessions), settings.prompts[0])
    with run.swarm(model, spans) as nodes:
        ids = asyncio.run(_measure(run, report, nodes, prompts))
    if settings.baselines:
        _baselines(run, report, model, prompts, ids)
    return report


def _title(s: Settings) -> str:
    return (
        f"{s.model} {s.dtype}, {s.stages} nodes x {s.threads} thread, "
        f"prompt {s.prompts[0]}, {s.tokens} new tokens"
    )


Ids = list[Sequence[int]]


async def _measure(
    run: Run, report: Report, nodes: LocalSwarm, prompts: Sequence[Sequence[int]]
) -> Ids:
    """Run all crowds; returns the ids of each session."""
    settings = run.settings
    async with AsyncClient(nodes.addresses[0], timeout=600.0) as client, Meter(nodes.nodes) as m:
        run.step("warm-up")
        await Crowd(client, m, prompts[:2], 8).run()
        must_hold = settings.dtype == "float32" or await m.exact()
        seen: Ids = []
        for size in settings.sessions:
            crowds = await rounds(run, report, client, m, prompts[:size], f"{size} sessions")
            if crowds:
                report.rows.append({"sessions": size, **medians([c.figures() for c in crowds])})
                _compare_rounds(report, size, crowds, seen, must_hold)
        if settings.checked:
            await _check_alone(run, report, client, m, prompts, seen, must_hold)
    _ratios_to_one(report)
    return seen


async def rounds(
    run: Run,
    report: Report,
    client: AsyncClient,
    meter: Meter,
    prompts: Sequence[Sequence[int]],
    what: str,
) -> list[CrowdRun]:
    """Run one crowd as often as the settings and the budget say; none if not even one fits."""
    done: list[CrowdRun] = []
    for number in range(run.settings.rounds):
        if not run.affords(done[-1].seconds if done else 0.0):
            break
        run.step(f"{what}, round {number + 1} of {run.settings.rounds}")
        with run.others.watched():
            done.append(await Crowd(client, meter, prompts, run.settings.tokens).run())
    if len(done) < run.settings.rounds:
        report.notes.append(
            f"{what}: {len(done)} of {run.settings.rounds} rounds fitted into the budget of "
            f"{run.settings.budget_s:g} s"
        )
    return done


def _compare_rounds(
    report: Report, size: int, crowds: Sequence[CrowdRun], seen: Ids, must_hold: bool
) -> None:
    """Compare each session with what it had in a smaller crowd, or in an earlier round."""
    pairs = []
    for crowd in crowds:
        for index, session in enumerate(crowd.sessions):
            if index < len(seen):
                pairs.append((session.ids, seen[index]))
            else:
                seen.append(session.ids)
    if pairs:
        report.comparisons.append(
            compare(
                f"crowd of {size}", "smaller crowds and other rounds", pairs, must_hold=must_hold
            )
        )


async def _check_alone(
    run: Run,
    report: Report,
    client: AsyncClient,
    meter: Meter,
    prompts: Sequence[Sequence[int]],
    seen: Ids,
    must_hold: bool,
) -> None:
    """Run some sessions with nobody beside them."""
    pairs = []
    for index in spread(len(seen), run.settings.checked):
        run.step(f"session {index} alone")
        alone = await Crowd(client, meter, [prompts[index]], run.settings.tokens).run()
        pairs.append((seen[index], alone.sessions[0].ids))
    if pairs:
        report.comparisons.append(
            compare("sessions in crowds", "each alone", pairs, must_hold=must_hold)
        )


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` indices of `count`, the last one first and spread evenly."""
    wanted = min(count, wanted)
    return [count - 1 - n * count // wanted for n in range(wanted)]


def _ratios_to_one(report: Report) -> None:
    ones = [row for row in report.rows if row["sessions"] == 1]
    for row in report.rows:
        one = ones[0]["decode_tokens_per_s"] if ones else None
        row["ratio_to_one"] = ratio(row["decode_tokens_per_s"], one)


def _baselines(
    run: Run, report: Report, model: models.Model, prompts: Sequence[Sequence[int]], ids: Ids
) -> None:
    """One process with as many threads as the swarm has in all."""
    settings = run.settings
    threads = settings.stages * settings.threads
    plain, plain_ids = baselines.generate(
        run, model, [prompts[:1]], settings.tokens, threads=threads
    )
    if plain_ids:
        report.comparisons.append(
            compare(
                "session 0",
                baselines.GENERATE,
                [(ids[0], plain_ids[0][0])],
                must_hold=settings.dtype == "float32",
            )
        )
    crowds = [prompts[:size] for size in settings.sessions if size > 1]
    report.baselines.append(plain)
    if crowds:
        static, _ = baselines.generate(run, model, crowds, settings.tokens, threads=threads)
        mixed, _ = baselines.continuous(run, model, crowds, settings.tokens, threads=threads)
        report.baselines += [static, mixed]
    for row in report.rows:
        _ratios(row, *report.baselines)


def _ratios(
    row: Row, plain: Baseline, static: Baseline | None = None, mixed: Baseline | None = None
) -> None:
    size = int(row["sessions"] or 0)
    decode = row["decode_tokens_per_s"]
    row["ratio_to_generate"] = ratio(decode, baselines.rate(plain, 1))
    if static is not None:
        row["static_tokens_per_s"] = baselines.rate(static, size)
        row["ratio_to_static"] = ratio(decode, row["static_tokens_per_s"])
    if mixed is not None:
        # It tells no times of single tokens: with prefill against with prefill.
        row["continuous_tokens_per_s"] = baselines.rate(mixed, size, "tokens_per_s")
        row["ratio_to_continuous"] = ratio(row["tokens_per_s"], row["continuous_tokens_per_s"])
