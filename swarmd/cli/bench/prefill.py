"""Scenario `prefill`: long prompts in chunks that overlap, against the same swarm with one chunk.

One chunk passes one stage after the other, so nothing overlaps. The figure is prompt tokens per
second until the first new token.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from swarmd.cli.bench import baselines, llama, models
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.crowd import CrowdRun, Figures, medians
from swarmd.cli.bench.lab import Ids, Lab
from swarmd.cli.bench.report import Chart, Column, Report, Row, compare
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.local_swarm import LocalSwarm
from swarmd.core.errors import UsageError

DEFAULTS = Settings(prompts=(512, 2048, 8192), tokens=2, budget_s=600.0)
COLUMNS = (
    Column("prompt", "prompt tokens", "d"),
    Column("prompt_tokens_per_s", "prompt tokens/s"),
    Column("one_chunk_tokens_per_s", "the same in one chunk"),
    Column("ratio_to_one_chunk", "  ratio", ".2f"),
    Column("generate_tokens_per_s", "transformers.generate"),
    Column("ratio_to_generate", "  ratio", ".2f"),
    Column("llama_tokens_per_s", "llama.cpp, RPC servers"),
    Column("ratio_to_llama", "  ratio", ".2f"),
    Column("overlap", "stages that compute at a time", ".2f"),
    Column("ttft_p50_s", "first token s", ".2f"),
)
CHART = Chart(
    x="prompt",
    series={
        "prompt_tokens_per_s": "swarm",
        "one_chunk_tokens_per_s": "swarm, one chunk",
        "generate_tokens_per_s": "transformers.generate",
        "llama_tokens_per_s": "llama.cpp, RPC servers",
    },
    y_title="prompt tokens/s",
    x_title="prompt tokens",
    bars=True,
)


@dataclass
class _Measured:
    """By length of prompt."""

    figures: dict[int, Figures] = field(default_factory=dict)
    ids: dict[int, list[Ids]] = field(default_factory=dict)


def run(run: Run) -> Report:
    """Measure with chunks, without, and one process."""
    settings = run.settings
    run.plan(6 + 2 * len(settings.prompts) * settings.rounds)
    model = run.model()
    title = f"{settings.model} {settings.dtype}, {settings.stages} nodes: one prompt"
    report = Report(title, COLUMNS, chart=CHART)
    lengths = [n for n in settings.prompts if n + settings.tokens <= model.max_len]
    if not lengths:
        raise UsageError(f"{model.name} takes at most {model.max_len} tokens: ask for less")
    if lengths != list(settings.prompts):
        report.notes.append(f"longer prompts left out: the model ends at {model.max_len} tokens")
    chunks = _one_swarm(run, report, model, lengths)
    whole = _one_swarm(run, report, model, lengths, "--chunk-size", str(max(lengths)))
    for length in lengths:
        if length in chunks.figures:
            report.rows.append(_row(length, chunks.figures[length], whole.figures.get(length, {})))
    _compare(report, chunks, whole, must_hold=settings.dtype == "float32")
    if settings.baselines:
        _baseline(run, report, model, lengths)
    return report


def _one_swarm(
    run: Run, report: Report, model: models.Model, lengths: list[int], *flags: str
) -> _Measured:
    spans = model.spans(run.settings.stages)
    with run.swarm(model, spans, *flags, *run.without_cache(), kv_memory="2GiB") as nodes:
        run.wait_ready(nodes)
        return asyncio.run(_measure(run, report, nodes, model, lengths, " ".join(flags)))


async def _measure(
    run: Run,
    report: Report,
    nodes: LocalSwarm,
    model: models.Model,
    lengths: list[int],
    how: str,
) -> _Measured:
    found = _Measured()
    async with Lab(run, report, nodes) as lab:
        await lab.warm_up(models.prompts(model, 2, 64))
        for length in lengths:
            what = f"prompt of {length} tokens {how}".strip()
            crowds = await lab.rounds(models.prompts(model, 1, length), what)
            if crowds:
                found.figures[length] = medians([_figures(length, crowd) for crowd in crowds])
                lab.compare_rounds(what, crowds, found.ids.setdefault(length, []))
    return found


def _figures(length: int, crowd: CrowdRun) -> Figures:
    ttft = crowd.sessions[0].ttft_s
    # The few decodes are in the count: a share of some 1/length.
    busy = sum(work.busy_s for work in crowd.whole)
    return {
        "prompt_tokens_per_s": length / ttft,
        "overlap": busy / crowd.seconds,
        "ttft_p50_s": ttft,
    }


def _row(length: int, chunks: Figures, whole: Figures) -> Row:
    rate, plain = chunks["prompt_tokens_per_s"], whole.get("prompt_tokens_per_s")
    return {
        "prompt": length,
        **chunks,
        "one_chunk_tokens_per_s": plain,
        "one_chunk_overlap": whole.get("overlap"),
        "ratio_to_one_chunk": ratio(rate, plain),
    }


def _compare(report: Report, chunks: _Measured, whole: _Measured, *, must_hold: bool) -> None:
    """Chunks and one chunk add up in another order: in bfloat16 that may show."""
    both = [n for n in chunks.ids if n in whole.ids]
    pairs = [(chunks.ids[n][0], whole.ids[n][0]) for n in both]
    if pairs:
        report.comparisons.append(compare("chunks", "one chunk", pairs, must_hold=must_hold))


def _baseline(run: Run, report: Report, model: models.Model, lengths: list[int]) -> None:
    settings = run.settings
    crowds = [models.prompts(model, 1, length) for length in lengths]
    job = baselines.Job(baselines.GENERATE, crowds, settings.tokens)
    threads = settings.stages * settings.threads
    (plain,) = baselines.measure(run, model, [job], threads=threads)
    report.baselines.append(plain.baseline)
    by_length: dict[object, Row] = dict(zip(lengths, plain.baseline.rows, strict=False))
    for row in report.rows:
        found = by_length.get(row["prompt"])
        if found is not None:
            rate = ratio(row["prompt"], found["ttft_s"])
            row["generate_tokens_per_s"] = rate
            row["ratio_to_generate"] = ratio(row["prompt_tokens_per_s"], rate)
    other = llama.measure(run, model, lengths, settings.tokens, [1])
    report.baselines.append(other)
    rates = {row["prompt"]: row["prompt_tokens_per_s"] for row in other.rows}
    for row in report.rows:
        row["llama_tokens_per_s"] = rates.get(row["prompt"])
        row["ratio_to_llama"] = ratio(row["prompt_tokens_per_s"], row["llama_tokens_per_s"])
