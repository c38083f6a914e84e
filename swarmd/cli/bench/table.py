"""A report as a table for people. What the figures mean is the scenarios'."""

from __future__ import annotations

from swarmd.cli.bench.report import Baseline, Column, Comparison, Report, Row


def show(report: Report) -> None:
    """Print the table, then what was compared and noted."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if report.rows:
        # A figure per line and a column per measurement: there are more of the former.
        table = Table(title=report.title, box=box.SIMPLE_HEAD, title_justify="left")
        names, *figures = report.columns
        table.add_column(names.title)
        for row in report.rows:
            table.add_column(_cell(row.get(names.key), names.format), justify="right")
        for column in figures:
            table.add_row(column.title, *(_figure(row, column) for row in report.rows))
        console.print(table)
    for line in lines(report):
        console.print(line, markup=False, soft_wrap=True)


def lines(report: Report) -> list[str]:
    """Return what stands below the table."""
    if report.skipped:
        return [f"skipped: {report.skipped}"]
    missing = [_unavailable(b) for b in report.baselines if b.unavailable]
    return [*map(_compared, report.comparisons), *missing, *report.notes]


def _figure(row: Row, column: Column) -> str:
    return _cell(row.get(column.key), column.format)


def _cell(value: float | int | str | None, format: str) -> str:
    if value is None:
        return "-"
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
