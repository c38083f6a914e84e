"""What is said about one scenario: streams against their reference, figures against their bars.

Values only: what happened comes from `load`, the circumstances from the command.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Stream:
    """One request as its client saw it."""

    client: int
    prompt: str
    tokens: int
    """How many were asked for."""
    began: float
    """Monotonic, as all times here."""
    ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each id came."""
    error: str = ""
    done: bool = False
    repairs: int = 0
    resumes: int = 0
    recomputed: int = 0
    hit_at: float | None = None
    """When a fault hit a node that worked for it; None: none did."""
    route: tuple[int, ...] = ()
    """Process ids of the hops, the latest known."""

    @property
    def gaps(self) -> list[float]:
        """Waits between tokens, in seconds."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]

    @property
    def ttft(self) -> float:
        """Wait for the first token; infinite if none came."""
        return self.times[0] - self.began if self.times else math.inf


@dataclass(frozen=True, slots=True)
class Calm:
    """The same load undisturbed: what disturbed streams are compared with."""

    gap_p50: float
    gap_p99: float
    ttft: dict[str, float]
    """By prompt, in seconds."""

    @property
    def ttft_p99(self) -> float:
        """What the wait for a first token is at most, nearly always."""
        return percentile(self.ttft.values(), 99)

    @classmethod
    def of(cls, streams: Sequence[Stream]) -> Calm:
        """Sum up undisturbed streams."""
        gaps = [gap for stream in streams for gap in stream.gaps]
        return cls(
            percentile(gaps, 50),
            percentile(gaps, 99),
            {stream.prompt: stream.ttft for stream in streams},
        )

    def stall(self, stream: Stream) -> float:
        """The longest wait after the fault, less the p99 of such waits when nothing happens."""
        hit = stream.hit_at or 0.0
        waits = [
            b - a - self.gap_p99
            for a, b in zip(stream.times, stream.times[1:], strict=False)
            if b > hit
        ]
        if stream.times and stream.times[0] > hit:
            waits.append(stream.ttft - self.ttft_p99)
        return max(0.0, *waits, 0.0)

    def later_than_before(self, stream: Stream) -> float:
        """How much later its first token came than that of the same prompt undisturbed."""
        return stream.ttft - self.ttft[stream.prompt]


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure against what it may be at most."""

    name: str
    value: float | None
    most: float

    @property
    def met(self) -> bool:
        return self.value is not None and self.value <= self.most

    def as_dict(self) -> dict[str, Any]:
        value = self.value if self.value is None else round(self.value, 3)
        return {"name": self.name, "value": value, "at_most": self.most, "met": self.met}


@dataclass(slots=True)
class Findings:
    """What a scenario found, before it is judged."""

    streams: list[Stream] = field(default_factory=list)
    calm: Calm | None = None
    runs: int = 1
    counted: int = 1
    """Runs in which the fault hit what it was meant for."""
    facts: dict[str, Any] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    skipped: str = ""
    """Why it could not be run here."""
    may_fail: bool = False
    """Whether a typed error is an answer too, as where nobody holds the blocks."""

    stalls: list[float] | None = None
    """In ms, where streams are compared with more than one `calm`."""

    def stalls_ms(self) -> list[float]:
        """Stalls of the streams that were hit and went on, ascending."""
        if self.stalls is not None:
            return sorted(self.stalls)
        if self.calm is None:
            return []
        hit = (s for s in self.streams if s.hit_at is not None and s.done)
        return sorted(self.calm.stall(stream) * 1000 for stream in hit)


def judge(
    findings: Findings, reference: dict[tuple[str, int], Sequence[int]], leaked: int
) -> dict[str, Any]:
    """Return the verdict: the figures, each bar, and whether all is as it should be.

    `reference` holds the right ids by prompt and number of tokens.
    """
    if findings.skipped:
        return {"skipped": findings.skipped, "pass": True}
    wrong = [s for s in findings.streams if not is_exact(s, reference)]
    errors = [s.error for s in findings.streams if s.error]
    stalls = findings.stalls_ms()
    passed = (
        bool(findings.streams)
        and not wrong
        and leaked == 0
        and (findings.may_fail or not errors)
        and all(bar.met for bar in findings.bars)
        and findings.counted > 0
    )
    calm = findings.calm
    return {
        "pass": passed,
        "exact": not wrong,
        "requests": len(findings.streams),
        "wrong": len(wrong),
        "errors": len(errors),
        "error_samples": sorted({error[:300] for error in errors})[:5],
        "runs": findings.runs,
        "counted": findings.counted,
        "hit": len(stalls),
        "stall_p50_ms": whole(percentile(stalls, 50)),
        "stall_p99_ms": whole(percentile(stalls, 99)),
        "stalls_ms": [round(ms, 1) for ms in stalls],
        "undisturbed_gap_p50_ms": whole(calm.gap_p50 * 1000) if calm else None,
        "undisturbed_gap_p99_ms": whole(calm.gap_p99 * 1000) if calm else None,
        "recomputed_tokens": sum(s.recomputed for s in findings.streams),
        "leaked_bytes": leaked,
        "repairs": sum(s.repairs for s in findings.streams),
        "resumed": sum(s.resumes for s in findings.streams),
        "bars": [bar.as_dict() for bar in findings.bars],
        "facts": findings.facts,
    }


def is_exact(stream: Stream, reference: Mapping[tuple[str, int], Sequence[int]]) -> bool:
    """Whether every id that was delivered is the right one; all of them, if it ended well."""
    right = reference[stream.prompt, stream.tokens]
    if stream.done and len(stream.ids) != len(right):
        return False
    return list(right[: len(stream.ids)]) == stream.ids


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed; 0 of none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(ms: Sequence[float]) -> list[int]:
    """Return p50, p99 and how many there are."""
    return [whole(percentile(ms, 50)), whole(percentile(ms, 99)), len(ms)]


def whole(value: float) -> int:
    return round(value)
