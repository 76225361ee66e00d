"""The deadline of a request: distinguished from other cancellations, and ended with the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from bcs.config.loading import load_settings
from bcs.http.bodies import Bodies
from bcs.http.callers import Callers
from bcs.http.deadlines import Deadlines, LoopClock, task_deadlines
from bcs.http.guard import RequestGuard
from bcs.observability.telemetry import Telemetry
from tests.support.stopwatch import Stopwatch

pytestmark = pytest.mark.anyio

SECONDS = 0.2
TaskDeadlines = Deadlines[asyncio.Task[object]]
Answer = Callable[[Callable[[], Awaitable[None]]], Awaitable[web.StreamResponse]]


@pytest.fixture
def clock() -> LoopClock:
    return LoopClock(SECONDS)


@pytest.fixture
def deadlines(clock: LoopClock) -> TaskDeadlines:
    return task_deadlines(clock, SECONDS)


@pytest.fixture
async def answer(clock: LoopClock, deadlines: TaskDeadlines) -> AsyncIterator[Answer]:
    """Answers a request with a given handler."""
    settings, telemetry = load_settings(), Telemetry()
    callers = Callers(settings, telemetry, most=1)
    bodies = Bodies(callers.bodies, callers.held, most_bytes=1)
    guard = RequestGuard(settings, telemetry, bodies, deadlines, rates=None, crowded={})

    async def answered(work: Callable[[], Awaitable[None]]) -> web.StreamResponse:
        async def handler(_: web.Request) -> web.StreamResponse:
            await work()
            return web.Response()

        with anyio.fail_after(20):
            return await guard.wrap(handler, "/")(make_mocked_request("GET", "/"))

    async with anyio.create_task_group() as group:
        group.start_soon(clock.run)
        yield answered
        with anyio.fail_after(20):
            await guard.idle()
        assert not deadlines._began, "nothing is kept of a request that is over"
        group.cancel_scope.cancel()


async def test_a_late_request_is_answered_with_503_on_the_same_connection(answer: Answer) -> None:
    began, watch = anyio.current_time(), Stopwatch()
    response = await answer(anyio.sleep_forever)
    assert response.status == 503
    # The time is read once in a turn of the loop, so a request may seem to begin at the start of the turn.
    assert anyio.current_time() - began >= SECONDS * 0.9
    assert watch.seconds < SECONDS * 5
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert (await answer(anyio.lowlevel.checkpoint)).status == 200


async def test_a_request_in_time_leaves_nothing_that_strikes_later(answer: Answer, deadlines: TaskDeadlines) -> None:
    for _ in range(3):
        assert (await answer(anyio.lowlevel.checkpoint)).status == 200
        assert not deadlines._began


async def test_only_those_that_are_due_are_cancelled(answer: Answer) -> None:
    statuses: list[int] = []

    async def ask(work: Callable[[], Awaitable[None]]) -> None:
        statuses.append((await answer(work)).status)

    async def half() -> None:
        # Work that takes half of its time.
        await anyio.sleep(SECONDS / 2)

    async with anyio.create_task_group() as group:
        for work in (anyio.sleep_forever, half) * 5:
            group.start_soon(ask, work)
    assert statuses == [200] * 5 + [503] * 5


async def test_a_loop_that_is_held_up_makes_no_request_late(answer: Answer) -> None:
    async def work() -> None:
        time.sleep(SECONDS * 1.2)  # noqa: ASYNC251 (that is what holds the loop up)
        for _ in range(5):
            # Work that lets others in, and is not late itself.
            await anyio.sleep(SECONDS / 20)

    assert (await answer(work)).status == 200


@pytest.mark.parametrize("overdue", [False, True])
async def test_whoever_else_cancels_a_request_ends_it(answer: Answer, deadlines: TaskDeadlines, overdue: bool) -> None:
    started = anyio.Event()

    async def work() -> None:
        started.set()
        await anyio.sleep_forever()

    task = asyncio.ensure_future(answer(work))
    await started.wait()
    if overdue:  # both at once
        [(watched, _)] = deadlines._began.items()
        deadlines.unwatch(watched)
        watched.cancel()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
