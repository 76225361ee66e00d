"""Snapshots for open pages: made once for all, only while one is open, and none is kept for a slow reader."""

from __future__ import annotations

import anyio
import pytest

from bcs.http import live_feed
from bcs.http.live_documents import worth_a_look
from bcs.http.live_feed import LiveFeed
from bcs.supervision import Snapshot, State

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_feed, "INTERVAL_SECONDS", 0.01)


class Snapshots:
    """Numbers them."""

    def __init__(self) -> None:
        self.made = 0

    def make(self) -> str:
        self.made += 1
        if self.made == 3:
            raise ValueError("this one fails")
        return str(self.made)


async def test_readers_share_snapshots_and_a_slow_one_misses_some() -> None:
    snapshots = Snapshots()
    feed = LiveFeed(snapshots.make, most=2, clock=anyio.current_time)
    async with anyio.create_task_group() as group:
        group.start_soon(feed.run)
        await anyio.lowlevel.checkpoint()
        assert snapshots.made == 0  # nobody looks
        with feed.opened() as quick, feed.opened() as slow:
            assert feed.full
            seen = [await quick() for _ in range(5)]
            assert seen == ["1", "2", "4", "5", "6"]  # the third failed, and the feed went on
            assert await slow() == "6"
            assert snapshots.made == 6
            feed.end()
            assert (await quick(), await slow()) == (None, None)
        assert feed.open_streams == 0
        group.cancel_scope.cancel()


async def test_a_feed_that_was_ended_goes_on_when_it_runs_again() -> None:
    feed = LiveFeed(lambda: "{}", most=1, clock=anyio.current_time)
    with feed.opened() as following:
        assert await following() is None
    async with anyio.create_task_group() as group:
        group.start_soon(feed.run)
        await anyio.lowlevel.checkpoint()
        with feed.opened() as following:
            assert await following() == "{}"
        group.cancel_scope.cancel()


def test_of_thousands_of_actors_ten_that_are_in_trouble_are_listed() -> None:
    well = [Snapshot(f"batch-{number}", "actor", State.RUNNING) for number in range(2000)]
    troubled = [Snapshot(f"bad-{number}", "actor", State.BACKING_OFF, restarts=1) for number in range(20)]
    assert worth_a_look(well) == []
    assert [child.name for child in worth_a_look([*well, *troubled])] == [f"bad-{number}" for number in range(10)]
