"""A report as a picture, PNG and SVG, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swarmd.cli.bench.report import Chart, Report

MISSING = "no chart: matplotlib is not installed (pip install 'swarmd[bench]')"


def draw(report: Report, target: Path) -> list[Path]:
    """Write `target` with the suffixes .png and .svg; return them, none without matplotlib."""
    if report.chart is None or not report.rows:
        return []
    try:
        import matplotlib
    except ModuleNotFoundError:
        return []
    matplotlib.use("Agg")
    # Ids that do not change from run to run, so that a picture differs only when the figures do.
    matplotlib.rcParams["svg.hashsalt"] = "swarmd"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    _plot(figure.subplots(), report, report.chart)
    paths = [target.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _plot(axes: Any, report: Report, chart: Chart) -> None:
    labels = [str(row[chart.x]) for row in report.rows]
    for number, (key, label) in enumerate(chart.series.items()):
        points = [(n, row[key]) for n, row in enumerate(report.rows) if row.get(key) is not None]
        if not points:
            continue
        places, values = zip(*points, strict=True)
        if chart.bars:
            width = 0.8 / len(chart.series)
            axes.bar([p - 0.4 + width * (number + 0.5) for p in places], values, width, label=label)
        else:
            axes.plot(places, values, marker="o", label=label)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(bottom=0)
    axes.set(title=report.title, xlabel=chart.x_title, ylabel=chart.y_title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
