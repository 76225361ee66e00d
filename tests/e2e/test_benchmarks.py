"""The benchmarks measure what they say; how fast it is here and now is no test's business."""

import subprocess
import sys
from pathlib import Path

from benchmarks.measured import Measured, middle
from benchmarks.report import Report, compared

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=120, text=True).stdout


def test_a_short_run_measures_every_path_and_can_be_compared(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    told = run("--seconds", 0.3, "--rounds", 1, "--events", 400, "--batches", 10, "--json", kept)
    report = Report.load(kept)
    floor, warm, pruned, one, many, *growth = report.rows
    assert "floor" in floor.path
    assert len(growth) == 3
    for row in report.rows:
        assert row.path in told
        assert row.operations > 0
        assert row.rate > 0
        assert row.cpu_us > 0
    for row in (floor, warm, pruned, *growth):
        assert row.p50_ms is not None
        assert row.p999_ms is not None
        assert 0 < row.p50_ms <= row.p999_ms
    assert one.operations == 400
    assert many.operations == 200
    assert all(value > 0 for value in report.others.values())
    side_by_side = run("--compare", kept, kept)
    assert all(row.path in side_by_side for row in report.rows)


def test_the_middle_of_some_rounds_is_that_of_each_figure() -> None:
    rounds = [Measured("x", 1, rate, 100 - rate, p50_ms=None) for rate in (10.0, 30.0, 20.0)]
    assert middle(rounds) == Measured("x", 1, 20.0, 80.0)


def test_two_runs_are_compared_by_their_paths() -> None:
    before = Report([Measured("a", 1, 100.0, 50.0), Measured("gone", 1, 1.0, 1.0)])
    after = Report([Measured("new", 1, 1.0, 1.0), Measured("a", 1, 150.0, 25.0)])
    lines = compared(before, after).splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["a", "100", "150", "1.50", "50.0", "25.0", "0.50"]
