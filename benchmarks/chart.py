"""A run's figures as a picture for the docs."""

from __future__ import annotations

from pathlib import Path

import pygal
from pygal.style import CleanStyle

from benchmarks.report import Report


def draw(report: Report, file: Path) -> None:
    """CPU for one answer or event, path by path, as SVG."""
    chart = pygal.HorizontalBar(
        style=CleanStyle,
        title="CPU of the service for one answer or event, in microseconds",
        print_values=True,
        show_legend=False,
        value_formatter=lambda value: f"{value:.0f}",
        width=900,
        height=60 + 34 * len(report.rows),
        js=(),  # nothing from elsewhere
        disable_xml_declaration=True,
    )
    rows = report.rows[::-1]  # the first one on top
    chart.x_labels = [row.path for row in rows]
    chart.add("CPU", [round(row.cpu_us, 1) for row in rows])
    file.write_text(f"{chart.render(is_unicode=True)}\n")
