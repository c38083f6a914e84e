"""A report as a table for people. What the figures mean is the scenarios'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmd.cli.bench.report import Bar, Baseline, Column, Comparison, Report, Row, Value

if TYPE_CHECKING:
    from rich.table import Table

SIDE_BY_SIDE = 6
"""Up to so many measurements stand beside each other, with a figure per line."""
FILE_WIDTH = 110


def show(report: Report) -> None:
    """Print the table, then what was compared and noted."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    if report.rows:
        console.print(report.title, markup=False)
        table = Table(box=box.SIMPLE_HEAD)
        fill = _figure_per_line if len(report.rows) <= SIDE_BY_SIDE else _measurement_per_line
        fill(table, report)
        console.print(table)
    for line in lines(report):
        console.print(line, markup=False, soft_wrap=True)


def lines(report: Report) -> list[str]:
    """Return what stands below the table."""
    if report.skipped:
        return [f"skipped: {report.skipped}"]
    missing = [_unavailable(b) for b in report.baselines if b.unavailable]
    judged = map(judgement, report.bars)
    return [*map(_compared, report.comparisons), *missing, *judged, *report.notes]


def judgement(bar: Bar) -> str:
    """Return a figure, what is asked of it, and whether it is that."""
    limits = (("at least", bar.at_least), ("at most", bar.at_most))
    asked = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
    if bar.value is None:
        return f"{bar.what}: asked {asked}, not measured"
    value = _cell(bar.value, ".3f")
    return f"{bar.what}: {value}, asked {asked}: {'met' if bar.met else 'MISSED'}"


def _figure_per_line(table: Table, report: Report) -> None:
    names, *figures = report.columns
    table.add_column(names.title)
    for row in report.rows:
        table.add_column(_figure(row, names), justify="right")
    for column in figures:
        table.add_row(column.title, *(_figure(row, column) for row in report.rows))


def _measurement_per_line(table: Table, report: Report) -> None:
    for column in report.columns:
        width = max(len(_figure(row, column)) for row in report.rows)
        table.add_column(column.title.strip(), justify="right", min_width=width)
    for row in report.rows:
        table.add_row(*(_figure(row, column) for column in report.columns))


def _figure(row: Row, column: Column) -> str:
    return _cell(row.get(column.key), column.format)


def _cell(value: Value, format: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(f"{one:{format}}" for one in value)
    return value if isinstance(value, str) else f"{value:{format}}"


def _compared(c: Comparison) -> str:
    verdict = "the same ids" if c.equal == c.sessions else f"{c.equal} with the same ids"
    if not c.held:
        verdict = f"ONLY {verdict}, the first difference after {c.common}"
    elif c.equal < c.sessions:
        verdict += f" (rounding differs; {c.common} leading ids agree)"
    return f"tokens: {c.what} against {c.against}: {c.sessions} sessions, {verdict}"


def _unavailable(baseline: Baseline) -> str:
    return f"{baseline.name}: not available: {baseline.unavailable}"
