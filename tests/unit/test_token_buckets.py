"""Token buckets: how many requests a caller has, for how long it waits, and how many buckets are in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcs.domain.token_buckets import TokenBuckets

SECOND_NS = 1_000_000_000
STARTED_NS = 5_000 * SECOND_NS


class Clock:
    """A clock that a test sets."""

    now_ns = STARTED_NS

    def __call__(self) -> int:
        return self.now_ns

    def pass_seconds(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND_NS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_caller_may_use_its_burst_and_then_waits_for_each_token(clock: Clock) -> None:
    buckets = TokenBuckets(per_second=10, burst=3, clock_ns=clock)
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0.1, 0.1]
    clock.pass_seconds(0.04)
    assert buckets.take("a") == pytest.approx(0.06)
    clock.pass_seconds(0.06)
    assert [buckets.take("a") for _ in range(2)] == [0, 0.1]


def test_a_refused_request_uses_no_token(clock: Clock) -> None:
    buckets = TokenBuckets(per_second=1, burst=1, clock_ns=clock)
    assert buckets.take("a") == 0
    for _ in range(9):
        clock.pass_seconds(0.1)
        assert buckets.take("a") > 0
    clock.pass_seconds(0.1)
    assert buckets.take("a") == 0


def test_a_pause_gives_no_more_than_the_burst(clock: Clock) -> None:
    buckets = TokenBuckets(per_second=10, burst=3, clock_ns=clock)
    buckets.take("a")
    clock.pass_seconds(1_000)
    assert [bool(buckets.take("a")) for _ in range(4)] == [False, False, False, True]


def test_callers_do_not_use_the_tokens_of_each_other(clock: Clock) -> None:
    buckets = TokenBuckets(per_second=1, burst=1, clock_ns=clock)
    assert [buckets.take(caller) for caller in "aabb"] == [0, 1, 0, 1]


def test_full_buckets_are_dropped_and_used_ones_stay(clock: Clock) -> None:
    buckets = TokenBuckets(per_second=1, burst=2, clock_ns=clock)
    for number in range(100):
        buckets.take(f"before-{number}")
    clock.pass_seconds(2)
    for number in range(100):
        buckets.take(f"after-{number}")
    assert len(buckets) == 100
    buckets.take("after-0")
    assert buckets.take("after-0") == 1


def test_a_crowd_of_callers_takes_bounded_memory_and_refuses_nobody(clock: Clock) -> None:
    buckets = TokenBuckets(per_second=0.001, burst=1, clock_ns=clock, most=50)
    assert buckets.take("busy") == 0
    for number in range(1_000):
        assert buckets.take(f"crowd-{number}") == 0
        assert len(buckets) <= 50
        assert buckets.take("busy") > 0, "a caller that is refused all the time must not be dropped, and begin again"


@given(
    per_second=st.floats(0.01, 10_000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=200),
)
def test_no_caller_ever_gets_more_than_its_rate_and_its_burst(
    per_second: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    buckets = TokenBuckets(per_second=per_second, burst=burst, clock_ns=clock)
    taken = 0
    for pause in pauses:
        clock.pass_seconds(pause)
        wait = buckets.take("a")
        taken += not wait
        if wait:
            assert wait <= 1 / per_second * 1.001
        seconds = (clock.now_ns - STARTED_NS) / SECOND_NS
        assert taken <= burst + seconds * per_second * 1.001 + 0.001
