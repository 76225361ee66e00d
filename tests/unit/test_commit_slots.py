"""The slots for commits: never more at a time, in turns of the servers, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import anyio
import pytest

from bcs.actors.commit_slots import CommitSlots

pytestmark = pytest.mark.anyio


def on_server(batch_id: str) -> str:
    """The first letter of a batch's id names its server."""
    return batch_id[0]


class Commits:
    """Batches that wait for slots."""

    def __init__(self, slots: CommitSlots, group: anyio.abc.TaskGroup) -> None:
        self.slots = slots
        self.group = group
        self.begun: list[str] = []

    async def wait(self, *batches: str) -> None:
        for batch in batches:
            self.group.start_soon(self._begin, batch)
            await anyio.wait_all_tasks_blocked()

    async def _begin(self, batch: str) -> None:
        if not self.slots.acquire_nowait():
            await self.slots.acquire(batch)
        self.begun.append(batch)

    async def end(self, commits: int) -> Sequence[str]:
        """End commits, one after the other; returns the batches whose commits begin then."""
        before = len(self.begun)
        for _ in range(commits):
            self.slots.release()
        await anyio.wait_all_tasks_blocked()
        return self.begun[before:]


async def test_no_more_commits_run_than_there_are_slots() -> None:
    async with anyio.create_task_group() as group:
        commits = Commits(CommitSlots(2, on_server), group)
        await commits.wait("a1", "a2", "a3")
        assert commits.begun == ["a1", "a2"]
        assert await commits.end(1) == ["a3"]
        assert await commits.end(2) == []
        await commits.wait("a4", "a5", "a6")
        assert commits.begun[3:] == ["a4", "a5"]
        assert await commits.end(2) == ["a6"]


async def test_batches_on_one_server_follow_each_other() -> None:
    async with anyio.create_task_group() as group:
        commits = Commits(CommitSlots(2, on_server), group)
        await commits.wait("x1", "x2", "a1", "b1", "a2", "c1", "b2")
        assert await commits.end(2) == ["a1", "a2"]
        assert await commits.end(2) == ["b1", "b2"]
        assert await commits.end(2) == ["c1"]


async def test_a_server_with_many_batches_keeps_no_other_waiting() -> None:
    async with anyio.create_task_group() as group:
        commits = Commits(CommitSlots(2, on_server), group)
        await commits.wait("x1", "x2", "a1", "a2", "a3", "a4", "a5", "b1")
        assert await commits.end(2) == ["a1", "a2"]
        await commits.wait("a6")
        assert await commits.end(3) == ["b1", "a3", "a4"]
        assert await commits.end(2) == ["a5", "a6"]


@pytest.mark.parametrize("is_given", [False, True])
async def test_a_cancelled_batch_leaves_its_slot_to_the_next_one(is_given: bool) -> None:
    slots = CommitSlots(1, on_server)
    assert slots.acquire_nowait()
    # A task of asyncio may be cancelled after it was given a slot, and before it runs again.
    waiting = asyncio.ensure_future(slots.acquire("a1"))
    await anyio.wait_all_tasks_blocked()
    if is_given:
        slots.release()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    if not is_given:
        assert not slots.acquire_nowait()
        slots.release()
    assert slots.acquire_nowait()
    assert not slots.acquire_nowait(), "there is one slot only"
