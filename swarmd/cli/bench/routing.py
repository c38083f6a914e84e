"""Scenario `routing`: routes over thousands of simulated peers, as bench/routing.py measures them.

That file searches swarms of the tests with the router itself, so it belongs to a checkout, not to
the package; without it the scenario is skipped.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import swarmd
from swarmd.cli.bench.baselines import ratio
from swarmd.cli.bench.report import Baseline, Chart, Column, Report, Row
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings

PEERS = (64, 1_000, 10_000)
DEFAULTS = Settings(sessions=PEERS, rounds=8, budget_s=600.0)
SOURCE = Path(swarmd.__file__).parent.parent / "bench" / "routing.py"
COLUMNS = (
    Column("peers", "peers", ",.0f"),
    Column("choose_ms_p50", "a route, ms", ".2f"),
    Column("choose_ms_p95", "  p95", ".2f"),
    Column("view_ms_p50", "a view, ms", ".2f"),
    Column("index_ms_p50", "its index, ms", ".2f"),
    Column("first_ms_p50", "its first route, ms", ".2f"),
    Column("first_ms_p95", "  p95", ".2f"),
    Column("links_p95", "pairs weighed, p95", ",.0f"),
    Column("full_ms_p50", "search among all peers, ms", ".1f"),
    Column("ratio_to_full", "  times as long", ",.0f"),
    Column("ratio_p50", "cost against that search", ".3f"),
    Column("ratio_p95", "  p95", ".3f"),
    Column("ratio_max", "  at most", ".3f"),
)
CHART = Chart(
    x="peers",
    series={"choose_ms_p50": "a route", "first_ms_p50": "the first of a view"},
    y_title="ms",
    x_title="peers",
    bars=True,
)


def run(run: Run) -> Report:
    """Measure views of each size: `sessions` are numbers of peers, `rounds` numbers of swarms."""
    settings = run.settings
    title = f"choosing a route; medians over {settings.rounds} simulated swarms"
    report = Report(title, COLUMNS, chart=CHART)
    module = load(SOURCE)
    if module is None:
        report.skipped = f"{SOURCE} is not there: run this from a checkout"
        return report
    run.plan(len(settings.sessions))
    for peers in settings.sessions:
        if not run.affords(0.0, baselines_follow=False):
            report.notes.append(f"{peers} peers: left out, the budget is used up")
            continue
        run.step(f"{peers} peers")
        with run.others.watched():
            report.rows += module.run([peers], settings.rounds)
    report.baselines.append(_full_search(report.rows))
    return report


def _full_search(rows: Sequence[Row]) -> Baseline:
    for row in rows:
        row["ratio_to_full"] = ratio(row["full_ms_p50"], row["choose_ms_p50"])
    keys = ("peers", "full_ms_p50", "full_ms_p95")
    return Baseline(
        "search among all peers", tuple({key: row[key] for key in keys} for row in rows)
    )


def load(path: Path) -> ModuleType | None:
    """Return the module in a file, None if there is none."""
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("swarmd_bench_routing", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
