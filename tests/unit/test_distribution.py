"""A test that is marked `serial` runs alone, and gets its turn; the slow directories come first."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.distribution import ByModule, alone_or_beside_others, order, workers_for

WORKERS, TESTS = 4, 25


def item(locks: Path, *, serial: bool) -> pytest.Item:
    """A test of a worker that shares its locks with others."""
    config = SimpleNamespace(workerinput={"bcs_locks": str(locks)})
    marker = object() if serial else None
    return cast("pytest.Item", SimpleNamespace(config=config, get_closest_marker=lambda _: marker))


def test_a_serial_test_runs_alone_and_is_not_overtaken_for_ever(tmp_path: Path) -> None:
    running: list[str] = []
    beside_the_serial_one: list[str] = []
    begun, serial_is_done = threading.Barrier(WORKERS + 1), threading.Event()

    def work() -> None:
        begun.wait()
        # They go on until the serial test had its turn, which it never has if they overtake it.
        while not serial_is_done.is_set():
            with alone_or_beside_others(item(tmp_path, serial=False)):
                running.append("beside")
                serial_is_done.wait(0.001)
                running.remove("beside")

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    begun.wait()
    for _ in range(TESTS):
        with alone_or_beside_others(item(tmp_path, serial=True)):
            beside_the_serial_one += running
    serial_is_done.set()
    for thread in threads:
        thread.join(30)
    assert beside_the_serial_one == []


def test_other_tests_run_beside_each_other(tmp_path: Path) -> None:
    with alone_or_beside_others(item(tmp_path, serial=False)), alone_or_beside_others(item(tmp_path, serial=False)):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["queue", "running"]


def test_without_workers_nothing_is_locked(tmp_path: Path) -> None:
    alone = cast("pytest.Item", SimpleNamespace(config=SimpleNamespace(), get_closest_marker=lambda _: None))
    with alone_or_beside_others(alone), alone_or_beside_others(alone):
        assert list(tmp_path.iterdir()) == []


def test_workers_begin_with_what_takes_long_and_run_tests_alone_when_the_others_are_short() -> None:
    items: list[Any] = [
        SimpleNamespace(path=Path(f"tests/{name}"), get_closest_marker=lambda _, name=name: "alone" in name or None)
        for name in ("unit/a", "chaos/alone", "chaos/a", "integration/a", "kafka/a")
    ]
    order(cast("pytest.Config", SimpleNamespace(workerinput={})), items)
    assert [str(one.path) for one in items] == [
        "tests/chaos/a",
        "tests/kafka/a",
        "tests/integration/a",
        "tests/chaos/alone",
        "tests/unit/a",
    ]


@pytest.mark.parametrize(
    ("arguments", "workers"),
    [(["tests/unit", "tests/chaos"], 3), (["tests/unit"], 0), (["tests/unit/test_distribution.py::test_x"], 0)],
)
def test_the_whole_suite_gets_three_workers_and_a_part_none(arguments: list[str], workers: int) -> None:
    assert workers_for(cast("pytest.Config", SimpleNamespace(args=arguments))) == workers


@pytest.mark.parametrize(
    ("node_id", "unit"),
    [
        ("tests/kafka/test_a.py::test_x[1::2]", "tests/kafka/"),
        ("tests/unit/test_a.py::TestB::test_x", "tests/unit/test_a.py"),
    ],
)
def test_a_module_stays_together_and_so_do_all_of_apache_kafka(node_id: str, unit: str) -> None:
    assert ByModule._split_scope(cast("Any", None), node_id) == unit
