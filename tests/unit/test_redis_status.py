"""The status of Redis for liveness and readiness, and its age."""

from __future__ import annotations

import pytest

from bcs.actors.redis_probe import RedisStatus
from bcs.errors import StoreUnavailable

MAX_AGE_SECONDS = 9.0


class Clock:
    """A clock that is put forward by hand."""

    seconds = 1000.0

    def __call__(self) -> float:
        """Monotonic seconds."""
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def status(clock: Clock) -> RedisStatus:
    return RedisStatus(max_age_seconds=MAX_AGE_SECONDS, clock=clock)


def test_before_the_first_answer_redis_is_not_up(status: RedisStatus) -> None:
    with pytest.raises(StoreUnavailable, match="no probe has ended yet"):
        status.ensure_up()


def test_the_latest_probe_of_redis_counts(status: RedisStatus) -> None:
    status.up()
    status.ensure_up()
    status.down("it refused")
    with pytest.raises(StoreUnavailable, match="it refused") as raised:
        status.ensure_up()
    assert raised.value.store == "redis"
    status.up()
    status.ensure_up()


def test_an_old_answer_of_redis_does_not_count(status: RedisStatus, clock: Clock) -> None:
    status.up()
    clock.seconds += MAX_AGE_SECONDS
    status.ensure_up()
    clock.seconds += 1
    with pytest.raises(StoreUnavailable, match="10 s old"):
        status.ensure_up()


def test_an_outage_is_logged_once(status: RedisStatus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for _ in range(3):
        status.down("it refused")
    for _ in range(3):
        status.up()
    assert [record.message for record in caplog.records] == ["redis_probe_failed", "redis_probe_succeeded"]
