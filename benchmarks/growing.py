"""How the cost of a warm answer grows: with the essays of a batch, and with the batches in the store."""

from __future__ import annotations

from benchmarks.measured import Measured, middle
from benchmarks.resolving import ESSAYS, body, measure
from benchmarks.world import World


async def measured(world: World, seconds: float, rounds: int, batches: int, essays: int) -> list[Measured]:
    """Ask about a small batch and a large one, and then about any of many batches, with the small one beside them."""
    await world.know("small", ESSAYS, spellchecked=False)
    await world.know("large", essays, spellchecked=False)
    rows: list[list[Measured]] = [[] for _ in range(4)]
    for _ in range(rounds):
        rows[0].append(await measure(world, f"growth: a batch of {ESSAYS} essays", body("small"), seconds))
        rows[1].append(await measure(world, f"growth: a batch of {essays} essays", body("large"), seconds))
    await world.know_many("crowd", batches, ESSAYS)
    anyone = body("crowd-{number:12}", correlation_id="bench")
    for _ in range(rounds):
        rows[2].append(await measure(world, "growth: the first batch, among many", body("small"), seconds))
        rows[3].append(await measure(world, f"growth: any of {batches} batches", anyone, seconds, numbers=batches))
    return [middle(row) for row in rows]
