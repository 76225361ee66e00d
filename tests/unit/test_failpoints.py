"""A hook is called at fail points of all tasks that begin within it, and of no others."""

from __future__ import annotations

import anyio
import pytest

from bcs.observability.failpoints import FailPoint, fail_points, hit

pytestmark = pytest.mark.anyio


async def test_a_hook_is_called_in_tasks_that_begin_within_it() -> None:
    seen: list[str] = []

    async def hook(_: FailPoint, subject: str) -> None:
        seen.append(subject)

    async def other() -> None:
        await hit(FailPoint.STARTING, "a task")

    with fail_points(hook):
        await hit(FailPoint.STARTING, "this one")
        async with anyio.create_task_group() as group:
            group.start_soon(other)
    await hit(FailPoint.STARTING, "behind it")
    assert seen == ["this one", "a task"]


async def test_without_a_hook_nothing_happens_and_nobody_else_gets_a_turn() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await hit(FailPoint.STARTING, "nobody")
    assert not scope.cancelled_caught
