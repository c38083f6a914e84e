"""What the swarm is measured against: one process with the whole model, run in the same go.

The model code is the witness's; a baseline that cannot run here is recorded with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmd.cli.bench.models import Model
from swarmd.cli.bench.report import Baseline, Row
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.witness import witness
from swarmd.core.errors import SwarmdError

GENERATE = "transformers.generate"
STATIC = "transformers.generate, one batch"
CONTINUOUS = "transformers.generate_batch"
LEAST_S = 20.0
"""Loading a model alone takes about that long."""

Crowds = Sequence[Sequence[Sequence[int]]]


def generate(
    run: Run, model: Model, crowds: Crowds, tokens: int, *, threads: int, rounds: int = 1
) -> tuple[Baseline, list[list[list[int]]]]:
    """Run each crowd as one static batch (a crowd of one: plain); return also the ids."""
    name = STATIC if any(len(crowd) > 1 for crowd in crowds) else GENERATE
    return _crowds(run, "generate", name, model, crowds, tokens, threads, rounds)


def continuous(
    run: Run, model: Model, crowds: Crowds, tokens: int, *, threads: int
) -> tuple[Baseline, list[list[list[int]]]]:
    """Run each crowd through transformers' own continuous batching."""
    return _crowds(run, "continuous", CONTINUOUS, model, crowds, tokens, threads, 1)


def _crowds(
    run: Run,
    command: str,
    name: str,
    model: Model,
    crowds: Crowds,
    tokens: int,
    threads: int,
    rounds: int,
) -> tuple[Baseline, list[list[list[int]]]]:
    run.step(f"baseline {name}, {threads} threads")
    request = {
        "directory": str(model.directory),
        "dtype": model.dtype,
        "threads": threads,
        "crowds": [list(map(list, crowd)) for crowd in crowds],
        "tokens": tokens,
        "rounds": rounds,
        "budget_s": max(LEAST_S, run.left_s * 0.8),
    }
    try:
        with run.others.watched():
            answer = witness(command, request, timeout_s=max(2 * LEAST_S, run.left_s))
    except SwarmdError as error:
        return Baseline(name, unavailable=str(error)), []
    rows: list[Row] = [_row(found, threads) for found in answer["crowds"]]
    return Baseline(name, tuple(rows)), [found["ids"] for found in answer["crowds"]]


def _row(found: dict[str, Any], threads: int) -> Row:
    return {"threads": threads} | {k: v for k, v in found.items() if k != "ids"}


def rate(baseline: Baseline, sessions: int, figure: str = "decode_tokens_per_s") -> float | None:
    """Return a baseline's figure for a crowd of that size; None if it was not measured."""
    values = [row.get(figure) for row in baseline.rows if row["sessions"] == sessions]
    return values[0] if values and isinstance(values[0], float) else None


def ratio(value: object, against: object) -> float | None:
    """Return value / against, or None where one of them is missing."""
    if isinstance(value, int | float) and isinstance(against, int | float) and against:
        return value / against
    return None
