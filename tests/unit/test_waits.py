"""The actors' waits: logged once for each cause, and kept with their start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bcs.observability.waits import Wait, Waits

BEGAN = datetime(2026, 11, 28, tzinfo=UTC)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waits(clock: Clock, caplog: pytest.LogCaptureFixture) -> Waits:
    caplog.set_level("INFO", "bcs")
    return Waits(clock)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, object]]:
    return [(record.levelname, vars(record).get("error", record.msg)) for record in caplog.records]


def test_a_wait_is_said_once_for_each_cause_and_again_at_its_end(
    waits: Waits, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for cause in ("refused after 1 s", "refused after 2 s", "no answer", "refused after 3 s"):
        waits.begin("publisher", "reach the outbox", cause)
        clock.now += timedelta(seconds=1)
    assert waits.of("publisher") == [Wait("reach the outbox", "refused after 3 s", BEGAN)]
    assert waits.of("intake") == []
    waits.end("publisher", "reach the outbox")
    waits.end("publisher", "reach the outbox")
    assert waits.of("publisher") == []
    assert said(caplog) == [
        ("WARNING", "refused after 1 s"),
        ("WARNING", "no answer"),
        ("INFO", "dependency_wait_ended"),
    ]
    assert vars(caplog.records[-1])["seconds"] == 4.0


def test_a_wait_of_many_ends_with_the_last_of_them(waits: Waits, caplog: pytest.LogCaptureFixture) -> None:
    for holder in (1, 2):
        waits.begin("batches", "commit facts", "redis is away", holder=holder)
    waits.end("batches", "commit facts", holder=1)
    assert len(waits.of("batches")) == 1
    waits.end("batches", "commit facts", holder=2)
    assert waits.of("batches") == []
    assert len(said(caplog)) == 2


def test_the_longest_wait_of_each_actor_is_told_and_ends_at_zero(waits: Waits, clock: Clock) -> None:
    waits.begin("publisher", "reach the outbox", "no answer")
    clock.now += timedelta(seconds=3)
    waits.begin("publisher", "publish", "refused")
    clock.now += timedelta(seconds=1)
    assert waits.longest_seconds("publisher") == 4.0
    waits.end("publisher", "reach the outbox")
    assert waits.longest_seconds("publisher") == 1.0
    waits.end("publisher", "publish")
    assert waits.longest_seconds("publisher") == waits.longest_seconds("intake") == 0.0


def test_causes_that_keep_changing_do_not_fill_the_log(waits: Waits, caplog: pytest.LogCaptureFixture) -> None:
    for letter in "abcdefghij":
        waits.begin("archive", "reach PostgreSQL", letter)
    assert len(said(caplog)) == 5


def test_what_a_dependency_says_itself_is_kept_and_not_said_again(
    waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    waits.begin("intake", "read from Kafka", "no answer", log_cause=False)
    assert [wait.cause for wait in waits.of("intake")] == ["no answer"]
    waits.end("intake", "read from Kafka")
    assert said(caplog) == []
