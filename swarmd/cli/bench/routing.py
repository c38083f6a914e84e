"""Scenario `routing`: routes over thousands of simulated peers, as bench/routing.py measures them.

That file belongs to a checkout, not to the package; without it the scenario is skipped.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import swarmd
from swarmd.cli.bench.report import Report
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.settings import Settings

DEFAULTS = Settings(budget_s=300.0)
SOURCE = Path(swarmd.__file__).parent.parent / "bench" / "routing.py"


def run(run: Run) -> Report:
    """Call its `run`."""
    report = Report("choosing a route")
    module = load(SOURCE)
    if module is None:
        report.skipped = f"{SOURCE} is not there: run this from a checkout"
        return report
    run.step("simulated peers")
    with run.others.watched():
        report.rows += module.run()
    return report


def load(path: Path) -> ModuleType | None:
    """Return the module in a file, None if there is none."""
    spec = importlib.util.spec_from_file_location("swarmd_bench_routing", path)
    if spec is None or spec.loader is None or not path.is_file():
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
