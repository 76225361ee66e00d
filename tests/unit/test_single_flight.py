"""Concurrent callers share one call, and no caller gets a result of a call that began before."""

from __future__ import annotations

import anyio
import pytest

from bcs.storage.single_flight import SingleFlight

pytestmark = pytest.mark.anyio


async def test_a_caller_during_a_call_gets_the_result_of_the_next_call() -> None:
    flights: SingleFlight[int] = SingleFlight()
    world, calls = 1, 0
    looking, go_on = anyio.Event(), anyio.Event()
    answers: list[int] = []

    async def look() -> int:
        nonlocal calls
        calls += 1
        seen = world
        looking.set()
        await go_on.wait()
        return seen

    async def ask() -> None:
        answers.append(await flights.do("key", look))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await looking.wait()
        world = 2
        for _ in range(50):
            group.start_soon(ask)
        await anyio.lowlevel.checkpoint()
        go_on.set()
    assert answers == [1] + [2] * 50
    assert calls == 2


async def test_the_next_one_takes_over_from_one_who_was_cancelled() -> None:
    flights: SingleFlight[str] = SingleFlight()
    begun = anyio.Event()
    answers: list[str] = []

    async def never() -> str:
        begun.set()
        await anyio.sleep_forever()
        raise AssertionError

    async def found() -> str:
        return "found"

    async def ask() -> None:
        answers.append(await flights.do("key", found))

    async with anyio.create_task_group() as group, anyio.create_task_group() as first:
        first.start_soon(flights.do, "key", never)
        await begun.wait()
        for _ in range(3):
            group.start_soon(ask)
        await anyio.lowlevel.checkpoint()
        first.cancel_scope.cancel()
    assert answers == ["found"] * 3


async def test_an_error_is_told_to_all_who_waited_for_that_call() -> None:
    flights: SingleFlight[int] = SingleFlight()
    calls = 0

    async def fail() -> int:
        nonlocal calls
        calls += 1
        await anyio.lowlevel.checkpoint()
        raise LookupError(calls)

    async def ask() -> None:
        with pytest.raises(LookupError):
            await flights.do("key", fail)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ask)
    assert calls == 2
