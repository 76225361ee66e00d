"""Answers and events at the same time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio

from benchmarks.measured import Measured, middle
from benchmarks.resolving import body, measure
from benchmarks.world import GROUP, World
from tests.support.events import Event, spellchecked
from tests.support.waiting import wait_until

EVENTS_A_SECOND = 5_000
_BATCHES, _ESSAYS = 200, 30
_STEPS_A_SECOND = 20
_CAUGHT_UP_SECONDS = 60.0


async def measured(world: World, seconds: float, rounds: int) -> list[Measured]:
    """Ask about one batch while no events come in, and while many do: batch after batch, or of many in between each
    other; in turns.
    """
    warm = body("warm")
    rows: list[list[Measured]] = [[] for _ in range(3)]
    for turn in range(rounds):
        rows[0].append(await measure(world, "resolve, warm, by itself", warm, seconds))
        for row, (how, interleaved) in zip(rows[1:], (("in turn", 1), (f"of {_BATCHES}", _BATCHES)), strict=True):
            path = f"resolve, warm, {EVENTS_A_SECOND} events/s, batches {how}"
            async with anyio.create_task_group() as group:
                group.start_soon(_produce, world, f"mixed-{turn}", interleaved)
                await anyio.sleep(min(1.0, seconds))
                row.append(await measure(world, path, warm, seconds))
                group.cancel_scope.cancel()
            await wait_until(lambda: world.platform.caught_up(GROUP), _CAUGHT_UP_SECONDS)
    return [middle(row) for row in rows]


async def _produce(world: World, name: str, interleaved: int) -> None:
    sent = 0

    async def step(count: int) -> None:
        nonlocal sent
        events: list[Event] = []
        for number in range(sent, sent + count):
            block, place = divmod(number, interleaved * _ESSAYS)
            batch = f"{name}-{interleaved}-{block * interleaved + place % interleaved}"
            events.append(spellchecked(batch, f"essay-{place // interleaved}"))
        sent += count
        await world.platform.send(*events)

    await in_time(EVENTS_A_SECOND, step)


async def in_time(events_a_second: int, send: Callable[[int], Awaitable[None]]) -> None:
    """Send events at a rate until cancelled.

    :param send: sends so many events.
    """
    sent, began = 0, time.perf_counter()
    step = events_a_second // _STEPS_A_SECOND
    while True:
        with anyio.CancelScope(shield=True):  # what is sent is also counted, so that the end of it can be waited for
            await send(step)
        sent += step
        # By what is due and not by pauses: a slow step must not lower the rate.
        await anyio.sleep(max(0.0, began + sent / events_a_second - time.perf_counter()))
