"""What the swarm is measured against: one process with the whole model, run in the same go.

The model code is the witness's; a baseline that cannot run here is recorded with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swarmd.cli.bench.models import Model
from swarmd.cli.bench.report import Baseline, Row
from swarmd.cli.bench.run import Run
from swarmd.cli.bench.witness import witness
from swarmd.core.errors import SwarmdError

GENERATE = "transformers.generate"
STATIC = "transformers.generate, one batch"
CONTINUOUS = "transformers.generate_batch"
LEAST_S = 30.0
"""Loading a large model alone takes about half of that."""

Crowds = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Job:
    """Crowds for one baseline; a crowd is a list of prompts of the same length."""

    name: str
    crowds: Crowds
    tokens: int
    rounds: int = 1

    def request(self) -> dict[str, object]:
        """Return what the witness is told: `generate` runs a crowd as one static batch."""
        return {
            "kind": "continuous" if self.name == CONTINUOUS else "generate",
            "crowds": [[list(prompt) for prompt in crowd] for crowd in self.crowds],
            "tokens": self.tokens,
            "rounds": self.rounds,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """What a job came to; ids by crowd, session and token, of those crowds that were run."""

    baseline: Baseline
    ids: list[list[list[int]]]


def measure(run: Run, model: Model, jobs: Sequence[Job], *, threads: int) -> list[Found]:
    """Run the jobs one after the other in one process; also what failed has its place."""
    what = f"baselines: {', '.join(job.name for job in jobs)}; {threads} threads"
    request = {
        "directory": str(model.directory),
        "dtype": model.dtype,
        "threads": threads,
        "budget_s": max(LEAST_S, run.left_s * 0.8),
        "jobs": [job.request() for job in jobs],
    }

    def answered() -> list[dict[str, Any]]:
        try:
            return witness("measure", request, timeout_s=max(2 * LEAST_S, run.left_s))
        except SwarmdError as error:
            return [{"error": str(error)}]

    answers = run.undisturbed(what, answered)
    # What came after a failure of the whole process failed with it.
    answers += [{"error": answers[-1].get("error", "not run")}] * (len(jobs) - len(answers))
    return [_found(*pair, threads) for pair in zip(jobs, answers, strict=True)]


def _found(job: Job, answer: dict[str, Any], threads: int) -> Found:
    if "error" in answer:
        return Found(Baseline(job.name, unavailable=answer["error"]), [])
    rows: list[Row] = [
        {"threads": threads} | {k: v for k, v in crowd.items() if k != "ids"}
        for crowd in answer["crowds"]
    ]
    return Found(Baseline(job.name, tuple(rows)), [crowd["ids"] for crowd in answer["crowds"]])


def rate(baseline: Baseline, sessions: object) -> float | None:
    """Return a baseline's tokens/s in a crowd of that size; None if it was not measured."""
    rates = [row["decode_tokens_per_s"] for row in baseline.rows if row["sessions"] == sessions]
    return rates[0] if rates and isinstance(rates[0], float) else None


def ratio(value: object, against: object) -> float | None:
    """Return value / against, or None where one of them is missing."""
    if isinstance(value, int | float) and isinstance(against, int | float) and against:
        return value / against
    return None
