"""Scenario `wan`: the same nodes with links as long and as narrow as between cities.

All traffic between nodes goes through a proxy (`proxy`); the bound is what the compute of a token
and its way allow, and never more than without any delay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from swarmd.cli.bench import models
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.crowd import medians
from swarmd.cli.bench.lab import Ids, Lab, Prompts
from swarmd.cli.bench.proxy import Proxy
from swarmd.cli.bench.report import Chart, Column, Report, Row
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings
from swarmd.cli.local_swarm import LocalSwarm, free_port

DEFAULTS = Settings(sessions=(1, 16, 64), tokens=32, rounds=1, stages=3, checked=2, budget_s=900.0)
COLUMNS = (
    Column("link", "links", "s"),
    Column("sessions", "sessions", "d"),
    Column("decode_tokens_per_s", "tokens/s while all decode"),
    Column("ratio_to_no_delay", "  against no delay", ".2f"),
    Column("ratio_to_bound", "  against the bound", ".2f"),
    Column("bound_tokens_per_s", "bound"),
    Column("session_rate_mean", "tokens/s of a session", ".2f"),
    Column("stage_microbatch", "mean microbatch of each"),
    Column("ttft_p50_s", "first token p50 s", ".2f"),
)
CHART = Chart(
    x="label",
    series={"decode_tokens_per_s": "swarm", "bound_tokens_per_s": "bound"},
    y_title="tokens/s of all sessions",
    x_title="round trip and speed of the links, sessions",
    bars=True,
)


@dataclass(frozen=True, slots=True)
class Line:
    """A kind of link between two nodes."""

    rtt_ms: float
    mbit: float | None

    def __str__(self) -> str:
        return f"{self.rtt_ms:g} ms, {self.mbit:g} Mbit/s" if self.mbit else "no delay"


NO_DELAY = Line(0.0, None)
LINES = (NO_DELAY, Line(100, 1000), Line(20, 1000), Line(100, 100), Line(20, 100))
"""In this order: what no longer fits into the time is left out."""


def run(run: Run) -> Report:
    """Measure the same daemons over each kind of link."""
    s = run.settings
    run.plan(2 + len(LINES) * (1 + len(s.sessions) * s.rounds) + s.checked)
    model = run.model()
    title = f"{s.model} {s.dtype}, {s.stages} nodes in different places, {s.tokens} new tokens"
    report = Report(title, COLUMNS, chart=CHART)
    prompts = models.prompts(model, max(s.sessions), s.prompts[0])
    ports = [(free_port(), free_port()) for _ in range(s.stages)]
    flags = node_flags(ports)
    with (
        Proxy(ports) as proxy,
        run.swarm(model, model.spans(s.stages), *run.without_cache(), each=flags) as nodes,
    ):
        run.wait_ready(nodes)
        for node, (_, listen) in zip(nodes.nodes, ports, strict=True):
            node.address = f"127.0.0.1:{listen}"  # the client stands beside the first node
        asyncio.run(_measure(run, report, nodes, proxy, prompts))
    bounds(report.rows, s.stages)
    return report


def node_flags(ports: Sequence[tuple[int, int]]) -> list[list[str]]:
    """Return the flags of each node. `ports` are where it is announced and where it listens."""
    seeds = [f"127.0.0.1:{announced}" for announced, _ in ports[:2]]
    flags = []
    for announced, listen in ports:
        own = f"127.0.0.1:{announced}"
        peers = ",".join(seed for seed in seeds if seed != own)
        where = ["--listen", f"127.0.0.1:{listen}", "--announce", own]
        flags.append([*where, "--peers", peers] if peers else where)
    return flags


async def _measure(
    run: Run, report: Report, nodes: LocalSwarm, proxy: Proxy, prompts: Prompts
) -> None:
    seen: list[Ids] = []
    async with Lab(run, report, nodes) as lab:
        for line in LINES:
            proxy.set(rtt_s=line.rtt_ms / 1000, bits_per_s=line.mbit * 1e6 if line.mbit else None)
            await lab.warm_up(prompts)
            for size in run.settings.sessions:
                what = f"{line}, crowd of {size}"
                crowds = await lab.rounds(prompts[:size], what)
                if crowds:
                    figures = medians([crowd.figures() for crowd in crowds])
                    report.rows.append(_row(line, size) | figures)
                    lab.compare_rounds(what, crowds, seen)
        await lab.check_alone(prompts, seen)


def _row(line: Line, size: int) -> Row:
    short = f"{line.rtt_ms:g} ms\n{line.mbit:g} M\n{size}" if line.mbit else f"none\n\n{size}"
    return {
        "link": str(line),
        "label": short,
        "rtt_ms": line.rtt_ms,
        "mbit": line.mbit,
        "sessions": size,
    }


def bounds(rows: Sequence[Row], stages: int) -> None:
    """Write to each row what its links allow: the rate without delay, or sessions / token time.

    A token's time is its compute, taken from one session without delay, and a one-way delay per
    stage: between the stages, and from the last one to the first.
    """
    rates = {row["sessions"]: row["decode_tokens_per_s"] for row in rows if not row["mbit"]}
    compute_s = ratio(1.0, rates.get(1))
    for row in rows:
        free, size = rates.get(row["sessions"]), row["sessions"]
        rate, rtt_ms = row["decode_tokens_per_s"], row["rtt_ms"]
        row["ratio_to_no_delay"] = ratio(rate, free)
        if compute_s is None or not isinstance(free, float):
            continue
        assert isinstance(rtt_ms, int | float)
        bound = ratio(size, compute_s + stages * rtt_ms / 2000)
        row["bound_tokens_per_s"] = min(free, bound or free)
        row["ratio_to_bound"] = ratio(rate, row["bound_tokens_per_s"])
