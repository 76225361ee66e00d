"""What the record costs the usual work: the same without it and with it, in turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks import ingesting, resolving
from benchmarks.measured import Measured, middle
from benchmarks.resolving import ESSAYS, body
from benchmarks.world import World

_SPREAD = (("one batch", 1), ("200 batches", 200), ("2000 batches", 2000))
_Measurement = Callable[[World, str, int], Awaitable[Measured]]


async def measured(without: World, within: World, seconds: float, rounds: int, events: int) -> list[Measured]:
    """Answers and events, until all that is owed for them is published and on record."""

    async def warm(world: World, how: str, _turn: int) -> Measured:
        return await resolving.measure(world, f"resolve, warm, {how}", body("kept-warm"), seconds, settle=True)

    async def pruned(world: World, how: str, _turn: int) -> Measured:
        path = f"resolve, one phase pruned, {how}"
        return await resolving.measure(world, path, body("kept-pruned"), seconds, settle=True)

    def ingested(spread: str, batches: int) -> _Measurement:
        async def measurement(world: World, how: str, turn: int) -> Measured:
            path = f"ingest, {spread}, {how}"
            return await ingesting.measure(world, path, f"kept-{turn}-{batches}", events, batches)

        return measurement

    worlds = ((without, "without record"), (within, "with record"))
    measurements = (warm, pruned, *(ingested(*spread) for spread in _SPREAD))
    rows: list[list[Measured]] = [[] for _ in range(len(measurements) * len(worlds))]
    for world, _ in worlds:
        await world.know("kept-warm", ESSAYS, spellchecked=False)
        await world.know("kept-pruned", ESSAYS, spellchecked=True)
        await ingesting.measure(world, "warm-up", "kept-warm-up", max(1, events // 20), 10)
    for turn in range(rounds):
        for place, row in enumerate(rows):
            world, how = worlds[place % len(worlds)]
            row.append(await measurements[place // len(worlds)](world, how, turn))
    return [middle(row) for row in rows]
