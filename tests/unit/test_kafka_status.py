"""The status of Kafka after measurements of the brokers."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition

from bcs.kafka.offsets import CommitNote, OffsetsMeasurement
from bcs.kafka.status import KafkaStatus
from bcs.wire import topics

TOPIC = topics.PHASE_OUTCOME
KEY = TopicPartition(TOPIC, 3)
LETTERS = topics.dead_letter_topic(TOPIC)
VISIBLE = frozenset(topics.CONSUMED)
HOUR_MS = 3_600_000
NOW_MS = 500_000 * HOUR_MS
NO_NOTE = CommitNote()


def look(first: int, end: int, committed: int | None, note: CommitNote = NO_NOTE) -> OffsetsMeasurement:
    return OffsetsMeasurement(VISIBLE, bounds={KEY: (first, end)}, committed={KEY: (committed, note)})


@pytest.fixture
def status() -> KafkaStatus:
    status = KafkaStatus()
    status.mark_connected()
    return status


def said(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(record.msg == event for record in caplog.records)


def test_values_that_a_measurement_lacks_stay_as_they_were(status: KafkaStatus) -> None:
    status.measured(look(0, 10, 4), NOW_MS)
    assert (status.lag(), status.measured_now) == ({KEY: 6}, True)
    status.measured(OffsetsMeasurement(VISIBLE, bounds={KEY: (0, 15)}, problems=["the group is refused"]), NOW_MS)
    assert (status.lag(), status.measured_now) == ({KEY: 11}, False)
    status.measured(OffsetsMeasurement(VISIBLE, problems=["no leader"]), NOW_MS)
    assert (status.lag(), status.measured_now) == ({KEY: 11}, False)
    status.measured(look(0, 15, 15), NOW_MS)
    assert (status.lag(), status.measured_now) == ({KEY: 0}, True)
    status.set_missing(frozenset({TOPIC}))
    assert not status.measured_now, "a topic that is not shown any more can't be measured"


def test_a_lag_that_can_not_be_measured_is_logged_once_if_that_lasts(
    status: KafkaStatus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    refused = OffsetsMeasurement(VISIBLE, problems=["GROUP_AUTHORIZATION_FAILED"])
    status.measured(refused, NOW_MS)
    status.measured(look(0, 1, 1), NOW_MS)
    assert said(caplog, "lag_measurement_failed") == said(caplog, "lag_measurement_resumed") == 0
    for _ in range(3):
        status.measured(refused, NOW_MS)
    assert said(caplog, "lag_measurement_failed") == 1
    assert "GROUP_AUTHORIZATION_FAILED" in (status.trouble or "")
    status.measured(look(0, 1, 1), NOW_MS)
    assert said(caplog, "lag_measurement_resumed") == 1
    assert status.trouble is None


def test_messages_removed_unread_are_logged_once_and_shown_for_a_day(
    status: KafkaStatus, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        status.measured(look(40, 50, 10), NOW_MS)
    assert said(caplog, "events_removed_unread") == 1
    assert f"{TOPIC}/3: 30 messages were removed" in (status.trouble or "")
    status.measured(look(40, 50, 50, CommitNote(NOW_MS, 30, NOW_MS)), NOW_MS + 23 * HOUR_MS)
    assert f"{TOPIC}/3: 30 messages were removed" in (status.trouble or "")
    status.measured(look(40, 50, 50, CommitNote(NOW_MS, 30, NOW_MS)), NOW_MS + 24 * HOUR_MS)
    assert status.trouble is None


def test_the_letters_of_a_topic_are_counted_over_its_partitions(status: KafkaStatus) -> None:
    bounds = {TopicPartition(LETTERS, 0): (5, 9), TopicPartition(LETTERS, 1): (0, 1)}
    status.measured(OffsetsMeasurement(VISIBLE, bounds=bounds), NOW_MS)
    assert status.dead_letters_waiting() == {LETTERS: 5}
    assert status.lag() == {}


def lag_at(status: KafkaStatus, now_ms: int) -> tuple[int | None, float | None]:
    lag = status.intake_lag(now_ms)
    return lag.events, lag.seconds


def test_the_lag_has_an_age_from_the_first_measurement_that_saw_an_event(status: KafkaStatus) -> None:
    assert lag_at(status, NOW_MS) == (None, None)
    status.measured(look(0, 10, 10), NOW_MS)
    assert lag_at(status, NOW_MS + 5_000) == (0, 0.0)
    status.measured(look(0, 15, 10), NOW_MS + 10_000)
    status.measured(look(0, 20, 12), NOW_MS + 20_000)
    assert lag_at(status, NOW_MS + 30_000) == (8, 20.0), "event 12 was there ten seconds after the first measurement"
    status.measured(look(0, 20, 15), NOW_MS + 30_000)
    assert lag_at(status, NOW_MS + 30_000) == (5, 10.0), "event 15 came later"
    status.measured(look(0, 20, 20), NOW_MS + 40_000)
    assert lag_at(status, NOW_MS + 50_000) == (0, 0.0)


def test_a_new_process_takes_the_last_event_that_was_read_for_the_age(status: KafkaStatus) -> None:
    status.measured(look(0, 15, 10, CommitNote(written_ms=NOW_MS - HOUR_MS)), NOW_MS)
    assert lag_at(status, NOW_MS) == (5, 3600.0)
    status.measured(look(0, 16, 15, CommitNote(written_ms=NOW_MS - HOUR_MS)), NOW_MS + 1_000)
    assert lag_at(status, NOW_MS + 1_000) == (1, 0.0)


def test_the_lag_grows_older_while_it_can_not_be_measured(status: KafkaStatus) -> None:
    status.measured(look(0, 10, 10), NOW_MS)
    status.mark_disconnected(OSError("away"))
    assert lag_at(status, NOW_MS + 7_000) == (0, 7.0)
    status.mark_connected()
    status.measured(look(0, 10, 10), NOW_MS + 8_000)
    assert lag_at(status, NOW_MS + 9_000) == (0, 0.0)


def test_the_age_of_a_long_lag_stays_exact_in_little_memory(status: KafkaStatus) -> None:
    for second in range(1_000):
        status.measured(look(0, 10 + second, 0), NOW_MS + second * 1_000)
    assert lag_at(status, NOW_MS + 1_000_000) == (1_009, 1_000.0)
    [kept] = status._lag_age._ends.values()
    assert len(kept.measured) <= 64
    # Of an event in the middle the age is known about.
    status.measured(look(0, 1_010, 500), NOW_MS + 1_000_000)
    _, seconds = lag_at(status, NOW_MS + 1_000_000)
    assert seconds is not None
    assert 450 <= seconds <= 510
