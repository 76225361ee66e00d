"""Answers and events at the same time."""

from __future__ import annotations

import time

import anyio

from benchmarks.measured import Measured, middle
from benchmarks.resolving import body, measure
from benchmarks.world import GROUP, World
from tests.support.events import spellchecked
from tests.support.waiting import wait_until

EVENTS_A_SECOND = 5_000
_BATCHES, _ESSAYS = 200, 30
_STEPS_A_SECOND = 20
_CAUGHT_UP_SECONDS = 60.0


async def measured(world: World, seconds: float, rounds: int) -> list[Measured]:
    """Ask about one batch while so many events come in, and while none do, in turns."""
    alone, beside = list[Measured](), list[Measured]()
    for turn in range(rounds):
        alone.append(await measure(world, "resolve, warm, by itself", body("warm"), seconds))
        path = f"resolve, warm, and {EVENTS_A_SECOND} events a second"
        async with anyio.create_task_group() as group:
            group.start_soon(_produce, world, turn)
            await anyio.sleep(1.0)
            beside.append(await measure(world, path, body("warm"), seconds))
            group.cancel_scope.cancel()
        await wait_until(lambda: world.platform.caught_up(GROUP), _CAUGHT_UP_SECONDS)
    return [middle(alone), middle(beside)]


async def _produce(world: World, turn: int) -> None:
    sent, began = 0, time.perf_counter()
    step = EVENTS_A_SECOND // _STEPS_A_SECOND
    while True:
        events = [
            spellchecked(f"mixed-{turn}-{number % _BATCHES}", f"essay-{number // _BATCHES % _ESSAYS}")
            for number in range(sent, sent + step)
        ]
        with anyio.CancelScope(shield=True):  # what is sent is also counted, so that the end of it can be waited for
            await world.platform.send(*events)
        sent += step
        # By what is due and not by pauses: a slow step must not lower the rate.
        await anyio.sleep(max(0.0, began + sent / EVENTS_A_SECOND - time.perf_counter()))
