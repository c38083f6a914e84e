"""`python -m bench.chaos.table`: write the measured figures into docs/failures.md.

One row for each verdict in bench/results; a test holds page and verdicts together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.chaos.soak import WARM_UP_S

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "failures.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
COLUMNS = (
    "scenario",
    "runs",
    "requests, hit",
    "exact",
    "stall p50 / p99 ms",
    "recomputed",
    "repairs, resumed",
    "errors",
    "leaked",
    "bars",
    "others' load",
)


def table(results: Path = RESULTS) -> str:
    """Return the rows of all verdicts, in the order of their names."""
    verdicts = [(p.stem, json.loads(p.read_text())) for p in sorted(results.glob("chaos-*.json"))]
    rows = [_row(name, verdict) for name, verdict in verdicts if "requests" in verdict]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(name: str, verdict: dict[str, Any]) -> tuple[str, ...]:
    if verdict["scenario"] == "soak":
        return _soak(name, verdict)
    return (
        f"`{name.removeprefix('chaos-')}`",
        f"{verdict['counted']} of {verdict['runs']}",
        f"{verdict['requests']}, {verdict['hit']}",
        "yes" if verdict["exact"] else f"no: {verdict['wrong']} wrong",
        f"{verdict['stall_p50_ms']} / {verdict['stall_p99_ms']}",
        str(verdict["recomputed_tokens"]),
        f"{verdict['repairs']}, {verdict['resumed']}",
        str(verdict["errors"]),
        str(verdict["leaked_bytes"]),
        _bars(verdict["bars"]),
        f"{verdict['others_share']:.0%}",
    )


def _soak(name: str, verdict: dict[str, Any]) -> tuple[str, ...]:
    grows = max(verdict["growth_mib_per_hour"].values(), default=0.0)
    known = verdict["minutes"] * 60 > WARM_UP_S
    return (
        f"`{name.removeprefix('chaos-')}`",
        f"{verdict['minutes']:g} min",
        f"{verdict['requests']}, {verdict['hit']}"
        if "hit" in verdict
        else str(verdict["requests"]),
        "no" if verdict["wrong"] else "yes",
        f"{verdict['stall_p50_ms']} / {verdict['stall_p99_ms']}" if "hit" in verdict else "-",
        str(verdict.get("recomputed_tokens", "-")),
        str(verdict["repairs_and_resumes"]),
        str(verdict["failed"]),
        str(verdict["leaked_bytes"]),
        f"grows {grows:g} MiB/h at most" if known else "too short to see memory grow",
        "-",
    )


def _bars(bars: list[dict[str, Any]]) -> str:
    missed = [
        f"**{bar['name']} {_number(bar['value'])}** (at most {_number(bar['at_most'])})"
        for bar in bars
        if not bar["met"]
    ]
    return ", ".join(missed) or f"{len(bars)} met"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def main() -> None:
    """Put the table where the page has it."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
