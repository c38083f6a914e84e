"""`python -m bench.chaos [SCENARIO ...]`: run scenarios, print a JSON verdict for each.

Exit code 0 if all passed. With `--save` the verdicts go to bench/results/chaos-SCENARIO.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from bench.chaos import namespaces
from bench.chaos.lab import SPANS, Lab, Settings, roomy_model
from bench.chaos.scenarios import SCENARIOS
from bench.chaos.slices import join
from bench.chaos.verdict import judge
from swarmd.cli.bench.machine import circumstances
from swarmd.cli.bench.others import Others

RESULTS = Path(__file__).parent.parent / "results"
QUIET = 0.2
"""With more of the machine taken by others, figures say little."""


def main() -> int:
    """Run the scenarios that are asked for."""
    options = arguments()
    names = options.scenarios or list(SCENARIOS)
    if names != ["partition"] and "partition" in names:
        # It runs within namespaces of its own, where this swarm could not be reached.
        return max(one_by_one(options, [n for n in names if n != "partition"], names))
    if names == ["partition"] and not namespaces.inside():
        return namespaces.run_inside(sys.argv[1:], options.save)
    return asyncio.run(run(options, names))


def one_by_one(options: argparse.Namespace, here: list[str], names: list[str]) -> list[int]:
    """Run those that need no namespaces, then the one that does."""
    code = asyncio.run(run(options, here))
    given = [word for word in sys.argv[1:] if word not in names]
    return [code, namespaces.run_inside([*given, "partition"], options.save)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--runs", type=int, help="how often, where a scenario has runs")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--silence", type=float, default=20.0, help="seconds that a node is silent")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--full", action="store_true", help="as long as the targets say")
    parser.add_argument("--save", action="store_true", help="write bench/results/chaos-*.json")
    parser.add_argument("--join", action="store_true", help="with --save: add to what is there")
    parser.add_argument("--keep", type=Path, help="directory for the daemons' logs")
    parser.add_argument("--flag", action="append", default=[], help="a flag for every daemon")
    options = parser.parse_args()
    unknown = set(options.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    return options


async def run(options: argparse.Namespace, names: list[str]) -> int:
    settings = Settings(
        dtype=options.dtype,
        seed=options.seed,
        clients=options.clients,
        runs=options.runs,
        full=options.full,
        silence_s=options.silence,
    )
    flags = ("--dtype", options.dtype, "--threads", "1", "--kv-memory", "1GiB")
    flags = (*flags, "--max-sessions", "1024", "--chunk-size", "64", *options.flag)
    env = {"OMP_NUM_THREADS": "1"}
    failed = []
    with (
        tempfile.TemporaryDirectory(prefix="swarmd-model-") as directory,
        namespaces.swarm(roomy_model(directory), SPANS, flags, env, options.keep) as nodes,
    ):
        lab = Lab(nodes, settings)
        lab.witness([(p, settings.tokens) for p in dict.fromkeys(lab.prompts)])
        await lab.ready()
        for name in names:
            verdict = await one(lab, name)
            print(json.dumps(verdict), flush=True)
            if not verdict["pass"]:
                failed.append(name)
            if options.save:
                save(verdict, add=options.join)
    print(f"failed: {', '.join(failed)}" if failed else "all passed", file=sys.stderr)
    return 1 if failed else 0


async def one(lab: Lab, name: str) -> dict[str, Any]:
    """Run one scenario and judge it."""
    others, began = Others(), time.monotonic()
    here = circumstances()
    load_before = os.getloadavg()[0]
    lab.rng.seed(lab.settings.seed)
    with others.watched() as stretch:
        try:
            found = await SCENARIOS[name](lab)
            free_s, leaked = await lab.until_free()
            found.facts["all_free_after_s"] = round(free_s, 1)
            verdict = judge(found, lab.reference, leaked)
        except Exception as error:
            traceback.print_exc()
            verdict = {"pass": False, "broke": f"{type(error).__name__}: {error}"[:500]}
    return {
        "scenario": name,
        "what": " ".join((SCENARIOS[name].__doc__ or "").split()),
        **verdict,
        "seed": lab.settings.seed,
        "dtype": lab.settings.dtype,
        "clients": lab.settings.clients,
        "full": lab.settings.full,
        "took_s": round(time.monotonic() - began, 1),
        "others_share": round(min(1.0, stretch.share), 2),  # too high where nodes were killed
        "loaded": stretch.share > QUIET,
        "load_before": round(load_before, 2),
        "date": here["date"],
        "commit": here["commit"],
        "machine": here["machine"],
    }


def save(verdict: dict[str, Any], *, add: bool = False) -> None:
    name = verdict["scenario"] + ("" if verdict["dtype"] == "float32" else "-" + verdict["dtype"])
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"chaos-{name}.json"
    if add and path.exists():
        verdict = join(json.loads(path.read_text()), verdict)
    path.write_text(json.dumps(verdict, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
