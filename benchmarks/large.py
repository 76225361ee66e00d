"""Large batches: an event, and a question while events come."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from itertools import count

import anyio

from bcs.domain.facts import EssayPhaseEnded, Outcome
from bcs.domain.state import delta_of
from benchmarks.generator import Order
from benchmarks.measured import Measured, middle, percentiles_ms
from benchmarks.mixed import in_time
from benchmarks.resolving import ask, body
from benchmarks.usage import cpu_seconds, per_operation
from benchmarks.world import GROUP, World
from tests.support.events import spellchecked
from tests.support.waiting import wait_until

EVENTS_A_SECOND = 500
_CALLERS = 2
_COMMITS = 5_000
_KNOWN_AT_A_TIME = 5_000
_TICK_SECONDS = 0.001
_CAUGHT_UP_SECONDS = 60.0


async def measured(world: World, seconds: float, rounds: int, essays: int, huge: int) -> list[Measured]:
    """Ask about a large batch while it is written, and write single events to a huge one.

    :param essays: how many essays the large batch has.
    :param huge: how many essays the huge batch has.
    """
    await world.know("large-written", essays, spellchecked=False)
    rows: list[list[Measured]] = [[] for _ in range(2)]
    for turn in range(rounds):
        path = f"resolve, {essays} essays, {EVENTS_A_SECOND} events/s of the batch"
        async with anyio.create_task_group() as group:
            group.start_soon(_write, world, turn)
            await anyio.sleep(min(1.0, seconds))
            rows[0].append(await ask(world, path, Order(world.port, body("large-written"), _CALLERS, seconds)))
            group.cancel_scope.cancel()
        await wait_until(lambda: world.platform.caught_up(GROUP), _CAUGHT_UP_SECONDS)
    for start in range(0, huge, _KNOWN_AT_A_TIME):
        ids = range(start, min(start + _KNOWN_AT_A_TIME, huge))
        await world.store.commit("huge", delta_of(_completed(f"essay-{number}", number) for number in ids))
    rows[1] += [await _commits(world, huge, turn) for turn in range(rounds)]
    return [middle(row) for row in rows]


async def longest_stall_ms(world: World) -> float:
    """How long the event loop stood still at most while the summary of the huge batch was made, in this process."""
    await world.store.commit("huge", delta_of([_completed("one-more", 1)]))
    return await _stall_ms(lambda: world.store.summary("huge"))


async def _stall_ms(call: Callable[[], Awaitable[object]]) -> float:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await anyio.sleep(_TICK_SECONDS)
            longest = max(longest, time.perf_counter() - began - _TICK_SECONDS)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await call()
        group.cancel_scope.cancel()
    return longest * 1000


async def _write(world: World, turn: int) -> None:
    """Events of the large batch, each about another essay."""
    numbers = count()

    async def step(events: int) -> None:
        ids = (f"{next(numbers):08x}-6f2c-4d3a-9b1e-5c7d8e9f0a1b" for _ in range(events))
        await world.platform.send(*(spellchecked("large-written", essay) for essay in ids))

    await in_time(EVENTS_A_SECOND, step)


async def _commits(world: World, essays: int, turn: int) -> Measured:
    """Single events, one after the other, past the service."""
    took = list[float]()
    own, of_servers, began = cpu_seconds(os.getpid()), world.servers_cpu(), time.perf_counter()
    for number in range(_COMMITS):
        # Later than in the turns before, because a fact that is known already changes nothing.
        newer = _completed(f"essay-{number * 7 % essays}", 10**15 + turn * _COMMITS + number)
        before = time.perf_counter()
        await world.store.commit("huge", delta_of([newer]))
        took.append(time.perf_counter() - before)
    seconds = time.perf_counter() - began
    return Measured(
        f"commit, an event of a batch of {essays} essays",
        _COMMITS,
        _COMMITS / seconds,
        (cpu_seconds(os.getpid()) - own) / _COMMITS * 1e6,
        **per_operation(of_servers, world.servers_cpu(), _COMMITS),
        **percentiles_ms(took),
    )


def _completed(essay: str, at_us: int) -> EssayPhaseEnded:
    return EssayPhaseEnded("spellcheck", essay, Outcome.COMPLETED, at_us)
