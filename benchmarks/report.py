"""A run's figures: as a table for a person, as JSON to be kept, and two of them side by side."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.measured import Measured

_COLUMNS = (
    "path",
    "ops/s",
    "x floor",
    "x CPU",
    "CPU µs",
    "Redis µs",
    "PG µs",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "load CPU",
    "RSS MB",
)
_FORMATS = (
    "{:.0f}",
    "{:.2f}",
    "{:.2f}",
    "{:.1f}",
    "{:.1f}",
    "{:.1f}",
    "{:.2f}",
    "{:.2f}",
    "{:.2f}",
    "{:.0%}",
    "{:.0f}",
)


@dataclass(frozen=True)
class Report:
    """All rows of a run; the first one is the floor.

    :param others: figures that are no rates: name, with its unit, to value.
    """

    rows: list[Measured]
    others: dict[str, float] = field(default_factory=dict)
    machine: str = field(default_factory=lambda: f"{platform.machine()}, Python {platform.python_version()}")

    def save(self, file: Path) -> None:
        """As JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, file: Path) -> Report:
        """What was saved."""
        said = json.loads(file.read_text())
        return cls(**{**said, "rows": [Measured(**row) for row in said["rows"]]})

    def table(self) -> str:
        """For a person."""
        floor = self.rows[0]
        lines: list[Sequence[str]] = [_COLUMNS]
        for row in self.rows:
            figures = (
                row.rate,
                row.rate / floor.rate if row.generator_cpu is not None else None,
                row.cpu_us / floor.cpu_us,
                row.cpu_us,
                row.redis_cpu_us,
                row.postgres_cpu_us,
                row.p50_ms,
                row.p99_ms,
                row.p999_ms,
                row.generator_cpu,
                row.megabytes,
            )
            shown = [
                "" if figure is None else form.format(figure) for form, figure in zip(_FORMATS, figures, strict=True)
            ]
            lines.append((row.path, *shown))
        text = _aligned(lines)
        others = "\n".join(f"{name}: {value:.2f}" for name, value in self.others.items())
        return f"{text}\n\n{others}\n{self.machine}"


def compared(before: Report, after: Report) -> str:
    """Two runs side by side: rates and CPU, and by what factor each has changed."""
    old = {row.path: row for row in before.rows}
    lines: list[Sequence[str]] = [("path", "ops/s", "", "factor", "CPU µs", "", "factor")]
    for row in after.rows:
        if row.path in old:
            was = old[row.path]
            rates = (f"{was.rate:.0f}", f"{row.rate:.0f}", f"{row.rate / was.rate:.2f}")
            lines.append((row.path, *rates, f"{was.cpu_us:.1f}", f"{row.cpu_us:.1f}", f"{row.cpu_us / was.cpu_us:.2f}"))
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
