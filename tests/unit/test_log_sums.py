"""Repeated log lines become one line, then a count each minute."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from bcs.observability.log_sums import LogSums


class Timers:
    """Timers that the test fires."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def order(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds == 60
        self._waiting.append(call)

    def let_a_minute_pass(self) -> None:
        due, self._waiting = self._waiting, []
        for call in due:
            call()

    @property
    def waiting(self) -> int:
        return len(self._waiting)


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def sums(timers: Timers) -> Iterator[LogSums]:
    before = structlog.get_config()
    sums = LogSums(timers.order)
    structlog.configure(processors=[sums, structlog.stdlib.render_to_log_kwargs], cache_logger_on_first_use=False)
    yield sums
    structlog.configure(**before)


def refuse(route: str, correlation_id: str) -> None:
    log = structlog.stdlib.get_logger("bcs.test.sums")
    log.warning("request_refused", route=route, correlation_id=correlation_id, summed_by=("route",))


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    return [
        (line.msg, line.levelno, *(vars(line).get(name) for name in ("route", "correlation_id", "repeated")))
        for line in caplog.records
        if line.name == "bcs.test.sums"
    ]


def test_a_thousand_lines_of_a_kind_are_the_first_and_a_count(
    sums: LogSums, timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        refuse("/define", f"request {number}")
    refuse("/complete", "another")
    said = [
        ("request_refused", logging.WARNING, "/define", "request 0", None),
        ("request_refused", logging.WARNING, "/complete", "another", None),
    ]
    assert lines(caplog) == said
    timers.let_a_minute_pass()
    said.append(("request_refused", logging.WARNING, "/define", "request 999", 999))  # type: ignore[arg-type]
    assert lines(caplog) == said


def test_a_lasting_condition_logs_each_minute_and_a_new_one_at_once(
    sums: LogSums, timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    for minute in range(3):
        for number in range(10):
            refuse("/define", f"{minute}/{number}")
        timers.let_a_minute_pass()
    assert [line[3:] for line in lines(caplog)] == [("0/0", None), ("0/9", 9), ("1/9", 10), ("2/9", 10)]
    timers.let_a_minute_pass()
    assert timers.waiting == 0
    refuse("/define", "again")
    assert lines(caplog)[-1][3:] == ("again", None)


def test_counts_are_not_lost_at_the_end_of_the_process(sums: LogSums, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        refuse("/define", "x")
    sums.flush()
    sums.flush()
    assert [line[-1] for line in lines(caplog)] == [None, 2]


def test_a_line_that_names_no_kind_is_always_written(sums: LogSums, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        structlog.stdlib.get_logger("bcs.test.sums").warning("started")
    assert len(lines(caplog)) == 3
