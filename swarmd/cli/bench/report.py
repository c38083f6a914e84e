"""What a scenario found: rows, baselines, compared tokens, bars; as one JSON object.

How a table or a chart looks is `table`'s and `chart`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
Value = float | int | str | list[float] | None
Row = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: which figure of a row, under which words, with which format."""

    key: str
    title: str
    format: str = ".1f"


@dataclass(frozen=True, slots=True)
class Chart:
    """One line or group of bars per series over the rows."""

    x: str
    """The figure of a row that stands below."""
    series: Mapping[str, str]
    """Label by figure."""
    y_title: str
    x_title: str
    bars: bool = False


@dataclass(frozen=True, slots=True)
class Baseline:
    """What else ran in the same go, or why it did not."""

    name: str
    rows: tuple[Row, ...] = ()
    unavailable: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ids of some sessions against those of another run of the same prompts."""

    what: str
    against: str
    sessions: int
    equal: int
    """Sessions whose ids are all the same."""
    common: int
    """Leading ids in which all agree."""
    distinct_ids: int
    """How many different ids occur: a comparison of one id repeated says little."""
    must_hold: bool
    """Whether a difference is a fault: not where rounding may differ."""

    @property
    def held(self) -> bool:
        return self.equal == self.sessions or not self.must_hold


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure against what is asked of it."""

    what: str
    value: Value
    """None: not measured, and so not met."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the figure is between its limits."""
        if not isinstance(self.value, int | float):
            return False
        high_enough = self.at_least is None or self.value >= self.at_least
        return high_enough and (self.at_most is None or self.value <= self.at_most)

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object, with those limits that there are."""
        limits = {"at_least": self.at_least, "at_most": self.at_most}
        there = {name: limit for name, limit in limits.items() if limit is not None}
        return {"what": self.what, "value": _short(self.value), **there, "met": self.met}


Ids = Sequence[int]


def compare(
    what: str,
    against: str,
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    must_hold: bool,
) -> Comparison:
    """Compare pairs of the same session."""
    return Comparison(
        what,
        against,
        sessions=len(pairs),
        equal=sum(list(a) == list(b) for a, b in pairs),
        common=min((common(a, b) for a, b in pairs), default=0),
        distinct_ids=len({token for a, _ in pairs for token in a}),
        must_hold=must_hold,
    )


def common(a: Ids, b: Ids) -> int:
    """Return in how many leading ids both agree."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


@dataclass(slots=True)
class Report:
    """Filled by a scenario as it goes."""

    title: str
    columns: Sequence[Column] = ()
    rows: list[Row] = field(default_factory=list)
    baselines: list[Baseline] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chart: Chart | None = None
    skipped: str = ""
    """Why the scenario could not run at all."""

    @property
    def tokens_equal(self) -> bool:
        return all(comparison.held for comparison in self.comparisons)

    @property
    def missed(self) -> list[Bar]:
        return [bar for bar in self.bars if not bar.met]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object; figures with six digits."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "rows": [_rounded(row) for row in self.rows],
            "baselines": {
                b.name: {"unavailable": b.unavailable}
                if b.unavailable
                else {"rows": [_rounded(row) for row in b.rows]}
                for b in self.baselines
            },
            "comparisons": [asdict(c) for c in self.comparisons],
            "tokens_equal": self.tokens_equal,
            "bars": [bar.as_dict() for bar in self.bars],
            "notes": self.notes,
        }


def _rounded(row: Row) -> Row:
    return {name: _short(value) for name, value in row.items()}


def _short(value: Value) -> Value:
    if isinstance(value, list):
        return [float(f"{one:.6g}") for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
