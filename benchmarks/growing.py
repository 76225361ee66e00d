"""How the cost of a warm answer grows: with the essays of a batch, and with the batches in the store."""

from __future__ import annotations

import anyio

from benchmarks.measured import Measured, middle
from benchmarks.resolving import ESSAYS, body, measure
from benchmarks.world import World

_WRITERS = 8


async def measured(world: World, seconds: float, rounds: int, batches: int, essays: int) -> list[Measured]:
    """Ask about a small batch and a large one, and then about any of many batches, with the small one beside them."""
    await world.know("small", ESSAYS, spellchecked=False)
    await world.know("large", essays, spellchecked=False)
    rows: list[list[Measured]] = [[] for _ in range(4)]
    for _ in range(rounds):
        rows[0].append(await measure(world, f"growth: a batch of {ESSAYS} essays", body("small"), seconds))
        rows[1].append(await measure(world, f"growth: a batch of {essays} essays", body("large"), seconds))
    await _know_many(world, batches)
    anyone = body("crowd-{number:12}", correlation_id="bench")
    for _ in range(rounds):
        rows[2].append(await measure(world, "growth: the first batch, among many", body("small"), seconds))
        rows[3].append(await measure(world, f"growth: any of {batches} batches", anyone, seconds, numbers=batches))
    return [middle(row) for row in rows]


async def _know_many(world: World, batches: int) -> None:
    numbers = iter(range(batches))

    async def tell() -> None:
        for number in numbers:
            await world.know(f"crowd-{number:012}", ESSAYS, spellchecked=False)

    async with anyio.create_task_group() as group:
        for _ in range(_WRITERS):
            group.start_soon(tell)
