"""The part of docs/performance.md that comes from one kept run: five headline numbers, and a table of all paths.

    .venv/bin/python -m benchmarks --batches 100000 --memory-events 1000000 \\
        --json docs/performance.json --chart docs/performance.svg
    .venv/bin/python -m benchmarks.page  # writes that part again
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.measured import Measured
from benchmarks.report import Report

ROOT = Path(__file__).parents[1]
RUN = ROOT / "docs/performance.json"
PAGE = ROOT / "docs/performance.md"
BEGIN = "<!-- made by `python -m benchmarks.page`: begin -->\n"
END = "<!-- end -->"

_WARM, _PRUNED = "resolve, warm", "resolve, one phase pruned"
_TOGETHER = ("ingest, one batch, Apache", "ingest, one batch,")
_IN_TURNS = ("ingest, 2000 batches, Apache", "ingest, 2000 batches,")
_START, _IDLE, _OF_A_BATCH = "seconds from start to ready", "MB resident, idle", "bytes in Redis for a batch"
# Microseconds of CPU above which decimals say nothing.
_WHOLE_US = 20
_TENTHS_MS = 10

_COLUMNS: dict[str, Callable[[Measured, Measured], str]] = {
    "a second": lambda row, _: f"{row.rate:,.0f}",
    "× floor": lambda row, floor: f"{row.rate / floor.rate:.2f}" if _is_answer(row) else "",  # noqa: RUF001
    "CPU × floor": lambda row, floor: f"{row.cpu_us / floor.cpu_us:.2f}",  # noqa: RUF001
    "CPU µs": lambda row, _: _microseconds(row.cpu_us),
    "Redis's CPU µs": lambda row, _: _microseconds(row.redis_cpu_us),
    "PostgreSQL's CPU µs": lambda row, _: _microseconds(row.postgres_cpu_us),
    "p50 ms": lambda row, _: _milliseconds(row.p50_ms),
    "p99 ms": lambda row, _: _milliseconds(row.p99_ms),
    "p99.9 ms": lambda row, _: _milliseconds(row.p999_ms),
}


def section(report: Report) -> str:
    """The part of the page, in Markdown.

    :raises LookupError: the run lacks a path that a headline needs; the path is named.
    """
    return f"\n{_headlines(report)}\n\n{_table(report)}\n\nMeasured on {report.machine}.\n\n"


def page_with(report: Report, page: str) -> str:
    """The whole page with that part made again.

    :param page: the page as it is.
    :raises ValueError: the page lacks the marks between which the part stands.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN.strip()} and {END}")
    return head + begin + section(report) + end + tail


def _headlines(report: Report) -> str:
    floor, warm, pruned = report.rows[0], _row(report, _WARM), _row(report, _PRUNED)
    together, in_turns = (_microseconds(_row(report, *names).cpu_us) for names in (_TOGETHER, _IN_TURNS))
    rate = f"{warm.rate:,.0f} a second on one core, {warm.rate / floor.rate:.2f} of what aiohttp alone does"
    p99, kilobytes = _milliseconds(warm.p99_ms), _other(report, _OF_A_BATCH) / 1000
    seconds, megabytes = _other(report, _START), _other(report, _IDLE)
    lines = [
        f"**A warm answer** takes {_microseconds(warm.cpu_us)} µs of CPU: {rate}, p99 {p99} ms.",
        f"**An answer that prunes a phase** takes {_microseconds(pruned.cpu_us)} µs, its announcement included.",
        f"**An event** takes {together} µs if a batch's events come together, {in_turns} µs if 2,000 batches mix.",
        f"**A batch** of 30 essays and 5 phases takes {kilobytes:.1f} kB in Redis.",
        f"**The process** is ready {seconds:.1f} s after its start, and takes {megabytes:.0f} MB of memory while idle.",
    ]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def _table(report: Report) -> str:
    floor = report.rows[0]
    cells = [[row.path, *(show(row, floor) for show in _COLUMNS.values())] for row in report.rows]
    used = [column for column in range(len(_COLUMNS) + 1) if any(line[column] for line in cells)]
    lines = [["path", *_COLUMNS], ["---"] * (len(_COLUMNS) + 1), *cells]
    return "\n".join(f"| {' | '.join(line[column] for column in used)} |" for line in lines)


def _is_answer(row: Measured) -> bool:
    """True for answers over HTTP: events have no percentiles, and the archive is asked past the service."""
    return row.p50_ms is not None and not row.path.startswith("record")


def _row(report: Report, *beginnings: str) -> Measured:
    """The first path whose name begins so; the first of these beginnings that any path has."""
    for beginning in beginnings:
        for row in report.rows:
            if row.path.startswith(beginning):
                return row
    raise LookupError(beginnings[0])


def _other(report: Report, beginning: str) -> float:
    for name, value in report.others.items():
        if name.startswith(beginning):
            return value
    raise LookupError(beginning)


def _microseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= _WHOLE_US else f"{value:.1f}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= _TENTHS_MS else f"{value:.2f}"


if __name__ == "__main__":
    PAGE.write_text(page_with(Report.load(RUN), PAGE.read_text()))
