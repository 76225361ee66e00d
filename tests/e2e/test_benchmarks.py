"""The benchmarks run and measure each path; no test depends on their speed."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.clustered import BUSIEST, FULLEST, SPREAD
from benchmarks.measured import Measured, middle
from benchmarks.page import cluster_section
from benchmarks.report import Report, compared

ROOT = Path(__file__).parents[2]
SECONDS = 0.1
# So many that they take more than a tick of the clock that CPU time is counted by.
EVENTS = 800
# More batches on record than are asked about in that time, since each is asked about once.
SCALING_AND_RECORD: tuple[object, ...] = ("--batches", 10, "--essays", 40, "--huge", 900, "--record-facts", 20_000)
SMALL: tuple[object, ...] = ("--entries", 2000)  # of the queues in a cluster
EXPECTED = (26, 11, 1, 3, 29)  # rows of answers, of events, of commits and of the record, and figures that are no rows


def run(*arguments: object, module: str = "benchmarks") -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=120, text=True).stdout


@pytest.mark.serial  # beside other tests it is measured how busy these are
@pytest.mark.release
def test_a_short_run_measures_every_path_and_is_kept_and_compared(tmp_path: Path) -> None:
    kept, chart = tmp_path / "run.json", tmp_path / "chart.svg"
    sizes = ("--seconds", SECONDS, "--rounds", 1, "--events", EVENTS, "--memory-events", 100, "--no-apache")
    told = run(*sizes, *SCALING_AND_RECORD, "--json", kept, "--chart", chart)
    report = Report.load(kept)
    answers = [row for row in report.rows if row.generator_cpu is not None]
    events = [row for row in report.rows if row.path.startswith("ingest")]
    commits = [row for row in report.rows if row.path.startswith("commit")]
    of_record = [row for row in report.rows if row.path.startswith("record")]
    assert (len(answers), len(events), len(commits), len(of_record), len(report.others)) == EXPECTED
    assert len(report.rows) == len(answers) + len(events) + len(commits) + len(of_record)
    assert "floor" in answers[0].path
    for row in report.rows:
        assert row.path in told
        assert f"{row.rate:.0f}" in told
        assert row.operations > 0
        assert row.cpu_us > 0
        assert row.path in chart.read_text()
    for row in answers:
        # It took the time that it was given, or longer.
        assert 0 < row.rate <= row.operations / SECONDS
    for row in (*answers, *of_record):
        assert row.p50_ms is not None
        assert row.p999_ms is not None
        assert 0 < row.p50_ms <= row.p999_ms
    for row in events:
        assert row.operations == EVENTS
    assert report.others.pop("explanations let go", 0.0) == 0
    assert report.others.pop("commits of several replicas that conflicted") == 0
    stalls = [report.others.pop(name) for name in list(report.others) if "stall" in name]
    assert all(stall >= 0 for stall in stalls), "a short run may have none"
    assert all(value > 0 for value in report.others.values())
    side_by_side = run("--compare", kept, kept)
    assert all(row.path in side_by_side for row in report.rows)
    assert run("--draw-from", kept) == told


@pytest.mark.serial
@pytest.mark.release
def test_a_cluster_is_measured_beside_one_server(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    run("--seconds", SECONDS, "--rounds", 2, "--events", EVENTS, *SMALL, "--json", kept, module="benchmarks.clustered")
    report = Report.load(kept)
    assert len(report.rows) == 10
    assert all(row.redis_busiest_us for row in report.rows)
    part = cluster_section(report)
    assert all(row.path.rpartition(", ")[0] in part for row in report.rows)
    shares = [value for name, value in report.others.items() if name.startswith((BUSIEST, FULLEST))]
    assert len(shares) == 2 * len(SPREAD)
    assert all(1 <= share < 2 for share in shares), "of three masters none has two thirds"


@pytest.mark.serial
@pytest.mark.release
def test_commits_that_wait_for_a_replica_are_measured_beside_others() -> None:
    table = run("--commits", EVENTS, "--rounds", 1, module="benchmarks.replicated")
    assert [line.rpartition("WAIT")[1] for line in table.splitlines() if line.startswith("commit")][-1:] == ["WAIT"]


def test_the_middle_of_some_rounds_is_that_of_each_figure() -> None:
    rounds = [Measured("x", 1, rate, 100 - rate, p50_ms=None) for rate in (10.0, 30.0, 20.0)]
    assert middle(rounds) == Measured("x", 1, 20.0, 80.0)


def test_two_runs_are_compared_by_their_paths() -> None:
    before = Report([Measured("a", 1, 100.0, 50.0), Measured("gone", 1, 1.0, 1.0)])
    after = Report([Measured("new", 1, 1.0, 1.0), Measured("a", 1, 150.0, 25.0)])
    lines = compared(before, after).splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["a", "100", "150", "1.50", "50.0", "25.0", "0.50"]
