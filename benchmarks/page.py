"""The parts of docs/performance.md that come from kept runs.

One has five headline numbers and a table of all paths, the other one a cluster beside one server.

    .venv/bin/python -m benchmarks --batches 100000 --memory-events 1000000 \\
        --json docs/performance.json --chart docs/performance.svg
    .venv/bin/python -m benchmarks.clustered --json docs/performance-cluster.json
    .venv/bin/python -m benchmarks.page  # writes both parts again
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path

from benchmarks.clustered import BUSIEST, FULLEST, SPREAD
from benchmarks.measured import Measured
from benchmarks.report import Report

ROOT = Path(__file__).parents[1]
RUN = ROOT / "docs/performance.json"
CLUSTER_RUN = ROOT / "docs/performance-cluster.json"
PAGE = ROOT / "docs/performance.md"
BEGIN = "<!-- made by `python -m benchmarks.page`: begin -->\n"
CLUSTER_BEGIN = "<!-- a cluster, made by `python -m benchmarks.page`: begin -->\n"
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


def cluster_section(report: Report) -> str:
    """The part about a cluster, in Markdown."""
    return f"\n{_cluster_table(report)}\n\n{_spread_table(report)}\n\nMeasured on {report.machine}.\n\n"


def page_with(part: str, page: str, mark: str = BEGIN) -> str:
    """The whole page with a part made again.

    :param page: the page as it is.
    :param mark: the line behind which the part begins.
    :raises ValueError: the page lacks the marks between which the part stands.
    """
    head, begin, rest = page.partition(mark)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {mark.strip()} and {END}")
    return head + begin + part + end + tail


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


def _cluster_table(report: Report) -> str:
    """Each kind of work on one server and on the cluster, side by side."""
    columns = ["path", "CPU µs: one server", "cluster", "ratio"]
    columns += ["Redis's CPU µs: one server", "all masters", "the busiest", "thousands a second: one server", "cluster"]
    lines = [columns, ["---"] * len(columns)]
    for one, several in zip(report.rows[::2], report.rows[1::2], strict=True):
        ratio = _other(report, f"CPU, {several.path} / ")
        figures = [one.cpu_us, several.cpu_us, one.redis_cpu_us, several.redis_cpu_us, several.redis_busiest_us]
        own, of_cluster, *of_redis = map(_microseconds, figures)
        # A server of Redis has one thread for commands.
        rates = [f"{1000 / (row.redis_busiest_us or inf):,.0f}" for row in (one, several)]
        lines.append([one.path.rpartition(", ")[0], own, of_cluster, f"{ratio:.2f}", *of_redis, *rates])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread_table(report: Report) -> str:
    """How evenly the nodes share what is kept."""
    lines = [["kept in the cluster", "memory: fullest node × mean", "CPU: busiest node × mean"], ["---"] * 3]  # noqa: RUF001
    for kind in SPREAD:
        parts = (_other(report, f"{most} {kind}") for most in (FULLEST, BUSIEST))
        lines.append([kind, *(f"{part:.2f}" for part in parts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    written = page_with(section(Report.load(RUN)), PAGE.read_text())
    PAGE.write_text(page_with(cluster_section(Report.load(CLUSTER_RUN)), written, CLUSTER_BEGIN))
