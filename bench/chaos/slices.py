"""Slices of one scenario, each a run of the command, as one verdict: how long series are run.

What one slice found is `verdict`'s; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.chaos.verdict import Bar, percentile, spread, whole

ADDED = (
    "requests",
    "wrong",
    "errors",
    "runs",
    "counted",
    "hit",
    "recomputed_tokens",
    "leaked_bytes",
    "repairs",
    "resumed",
)
ADDED_BARS = ("recomputed_tokens", "exit_codes_other_than_0")
STALL_BARS = {"stall_p50_ms": 50.0, "stall_p99_ms": 99.0}
SAME = ("scenario", "dtype", "clients", "full")


def join(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict of two slices together. Raises ValueError where they do not fit."""
    if any(one[key] != other[key] for key in SAME) or "stalls_ms" not in one:
        raise ValueError(f"slices of different things: {[(one[k], other[k]) for k in SAME]}")
    stalls = sorted([*one["stalls_ms"], *other["stalls_ms"]])
    took = one["took_s"] + other["took_s"]
    share = (one["others_share"] * one["took_s"] + other["others_share"] * other["took_s"]) / took
    bars = [_bar(a, b, stalls) for a, b in zip(one["bars"], other["bars"], strict=True)]
    return {
        **other,
        **{key: one[key] + other[key] for key in ADDED},
        "pass": all(bar["met"] for bar in bars) and all(map(_is_clean, (one, other))),
        "exact": one["exact"] and other["exact"],
        "error_samples": sorted({*one["error_samples"], *other["error_samples"]})[:5],
        "stalls_ms": stalls,
        "stall_p50_ms": whole(percentile(stalls, 50)),
        "stall_p99_ms": whole(percentile(stalls, 99)),
        "bars": bars,
        "facts": facts(one["facts"], other["facts"]),
        "slices": one.get("slices", 1) + 1,
        "seed": f"{one['seed']}, {other['seed']}",
        "took_s": round(took, 1),
        "others_share": round(share, 2),
        "loaded": one["loaded"] or other["loaded"],
        "load_before": max(one["load_before"], other["load_before"]),
    }


def _is_clean(one: dict[str, Any]) -> bool:
    return (
        bool(one["exact"]) and not one["errors"] and not one["leaked_bytes"] and one["counted"] > 0
    )


def _bar(one: dict[str, Any], other: dict[str, Any], stalls: Sequence[float]) -> dict[str, Any]:
    assert one["name"] == other["name"]
    name, values = one["name"], [v for v in (one["value"], other["value"]) if v is not None]
    if name in STALL_BARS:
        value: float | None = percentile(stalls, STALL_BARS[name])
    elif name in ADDED_BARS:
        value = sum(values)
    else:
        value = max(values, default=None)
    return Bar(name, value, one["at_most"]).as_dict()


def facts(one: Any, other: Any) -> Any:
    """Put facts of two slices together: lists one after the other, of numbers the larger one."""
    if isinstance(one, dict):
        both = {
            key: facts(one[key], other[key])
            if key in one and key in other
            else {**one, **other}[key]
            for key in sorted({*one, *other})
        }
        if "stalls_p50_p99_ms" in both:
            both["stalls_p50_p99_ms"] = {p: spread(ms) for p, ms in both["stalls_ms"].items()}
        return both
    if isinstance(one, list):
        return [*one, *other]
    return max(one, other)
