"""The verb: flags to settings, one scenario run, its report shown and kept.

What a scenario measures stands in its own file, which is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmd.cli import console, endings
from swarmd.cli.bench.settings import Settings, counts
from swarmd.core.errors import SwarmdError, UsageError
from swarmd.core.options import did_you_mean

if TYPE_CHECKING:
    from swarmd.cli.bench.report import Report
    from swarmd.cli.bench.run import Run

SCENARIOS = {
    "decode": "one session, two nodes",
    "concurrency": "crowds of sessions",
    "prefill": "long prompts",
    "prefix": "agents with a shared prompt",
    "replicas": "a span held twice",
    "wan": "long and narrow links",
    "routing": "thousands of simulated peers",
    "overhead": "the daemon's own cost",
}
RESULTS = Path("bench/results")


@console.verb
def bench(
    scenario: Annotated[str, typer.Argument(help=f"One of {', '.join(SCENARIOS)}.")] = "decode",
    model: Annotated[
        str | None, typer.Option(help="1.1b, small or tiny (random), demo, or a directory.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    sessions: Annotated[
        str | None, typer.Option(metavar="N,...", help="Sizes of the crowds.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="N,...", help="Lengths of prompts in tokens, as 64 or 2k.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, max=4096, help="To generate in each session.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=99, help="The median counts.")] = None,
    stages: Annotated[
        int | None, typer.Option(min=1, max=64, help="Nodes that share the blocks.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Of each node.")] = 1,
    checked: Annotated[
        int, typer.Option(min=0, max=256, help="Sessions run once more alone, to compare ids.")
    ] = 4,
    budget: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Leave out what takes longer.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Run what it is measured against.")
    ] = True,
    max_busy: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the machine that others may take.")
    ] = 0.15,
    allow_busy: Annotated[
        bool, typer.Option("--allow-busy", help="Report from a busy machine, marked as such.")
    ] = False,
    enforce: Annotated[
        bool, typer.Option("--enforce", help="Fail if a bar is missed (decode has some).")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write; default bench/results/SCENARIO.json.")
    ] = None,
    as_json: console.JsonOption = False,
) -> int | None:
    """Measure swarms on this machine against baselines; figures go to bench/results."""
    if scenario not in SCENARIOS:
        hint = did_you_mean(scenario, SCENARIOS)
        raise UsageError(f"no scenario {scenario!r}{hint}; there are {', '.join(SCENARIOS)}")
    given: dict[str, Any] = {
        "model": model,
        "sessions": sessions and counts(sessions, "--sessions"),
        "prompts": prompt and counts(prompt, "--prompt"),
        "tokens": tokens,
        "rounds": rounds,
        "stages": stages,
        "budget_s": budget,
    }
    if dtype not in ("bfloat16", "float32"):
        raise UsageError(f"no dtype {dtype!r} here: bfloat16 or float32")
    module = importlib.import_module(f"swarmd.cli.bench.{scenario}")
    settings: Settings = replace(
        module.DEFAULTS,
        dtype=dtype,
        threads=threads,
        checked=checked,
        baselines=baselines,
        max_busy=max_busy,
        allow_busy=allow_busy,
        **{name: value for name, value in given.items() if value is not None},
    )
    if enforce and not (hasattr(module, "bars") and module.bars(settings, {})):
        raise UsageError(f"--enforce: {scenario} has no bars, or none with these settings")
    return _run(scenario, module.run, settings, output, as_json, enforce=enforce)


def _run(
    scenario: str,
    measure: Any,
    settings: Settings,
    output: Path | None,
    as_json: bool,
    *,
    enforce: bool = False,
) -> int:
    from swarmd.cli.bench.machine import circumstances
    from swarmd.cli.bench.run import Run, Steps
    from swarmd.cli.bench.table import judgement

    _need("psutil", "torch")
    about = circumstances()
    with Steps(scenario, quiet=as_json) as steps, endings.in_order():
        run = Run(settings, steps)
        run.look()
        report: Report = measure(run)
    run.refuse_if_busy(run.others.share, "while something was measured")
    record = {"scenario": scenario, **about, **_conditions(run), **report.as_dict()}
    if not report.skipped:
        _keep(report, record, output or RESULTS / f"{scenario}.json")
    _show(report, record, as_json)
    if not report.tokens_equal:
        raise SwarmdError("the swarm's tokens are not what they are without the crowd: see above")
    if enforce and report.missed:
        raise SwarmdError("; ".join(map(judgement, report.missed)))
    return 0


def _need(*packages: str) -> None:
    missing = [package for package in packages if not _there(package)]
    if missing:
        raise SwarmdError(
            f"benchmarks need {' and '.join(missing)}, not installed here: "
            "pip install 'swarmd[node,bench]'"
        )


def _there(package: str) -> bool:
    """Whether it is installed; torch takes seconds to import."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _conditions(run: Run) -> dict[str, object]:
    share = run.others.share
    return {
        "settings": asdict(run.settings),
        "seconds": round(run.seconds, 1),
        "others_cpu_share": round(share, 4),
        "busy": share > run.settings.max_busy,
    }


def _keep(report: Report, record: dict[str, Any], path: Path) -> None:
    from swarmd.cli.bench.chart import MISSING, draw

    path.parent.mkdir(parents=True, exist_ok=True)
    if report.chart is not None and not draw(report, path):
        report.notes.append(MISSING)
    path.write_text(json.dumps(record, indent=1) + "\n")
    report.notes.append(f"written to {path}")


def _show(report: Report, record: dict[str, Any], as_json: bool) -> None:
    from swarmd.cli.bench.table import show

    if as_json:
        console.print_json(record | {"skipped": report.skipped})
    else:
        show(report)
