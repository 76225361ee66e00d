"""Two clocks are asked before an event is called ahead of time, and before a report gets its time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bcs.actors.clocks import Clocks
from bcs.errors import ClocksDiffer

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
SECOND_US = 1_000_000


def clocks(store_us: int) -> Clocks:
    async def store_time_us(_batch_id: str) -> int:
        return store_us

    return Clocks(now=lambda: NOW, store_time_us=store_time_us, max_skew_seconds=600)


async def test_a_time_within_the_skew_is_not_ahead_and_sends_no_request() -> None:
    async def nobody(_batch_id: str) -> int:
        raise AssertionError("the store is asked")

    asked = Clocks(now=lambda: NOW, store_time_us=nobody, max_skew_seconds=600)
    assert await asked.is_ahead(NOW_US + 600 * SECOND_US, "b") is False


async def test_a_time_beyond_both_clocks_is_ahead() -> None:
    assert await clocks(NOW_US).is_ahead(NOW_US + 600 * SECOND_US + 1, "b") is True


async def test_a_time_that_the_store_s_clock_allows_is_not_ahead() -> None:
    assert await clocks(NOW_US + 600 * SECOND_US).is_ahead(NOW_US + 601 * SECOND_US, "b") is False


@pytest.mark.parametrize("store_us", [NOW_US + 601 * SECOND_US, NOW_US - 601 * SECOND_US])
async def test_no_event_is_ahead_while_the_clocks_differ(store_us: int) -> None:
    with pytest.raises(ClocksDiffer) as differ:
        await clocks(store_us).is_ahead(NOW_US + 10_000 * SECOND_US, "b")
    assert differ.value.seconds == 601


@pytest.mark.parametrize("difference_us", [-600 * SECOND_US, 0, 600 * SECOND_US])
async def test_the_present_time_is_that_of_the_slower_clock(difference_us: int) -> None:
    assert await clocks(NOW_US + difference_us).agreed_now_us("b") == NOW_US + min(difference_us, 0)


@pytest.mark.parametrize("difference_us", [-600 * SECOND_US - 1, 600 * SECOND_US + 1])
async def test_there_is_no_present_time_while_the_clocks_differ(difference_us: int) -> None:
    with pytest.raises(ClocksDiffer):
        await clocks(NOW_US + difference_us).agreed_now_us("b")
