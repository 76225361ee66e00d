"""What the record takes to read: batches that Redis does not know, and their history."""

from __future__ import annotations

import time
from itertools import count

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.storage.postgres.archive import PostgresArchive
from benchmarks.generator import Order
from benchmarks.measured import Measured, middle, percentiles_ms
from benchmarks.pasts import ANY_BATCH, batch_of
from benchmarks.resolving import ask, body
from benchmarks.usage import family_cpu_seconds, process_id_of
from benchmarks.world import World

_CALLERS = (1, 8)
_PAGE = f"/internal/v1/batches/{ANY_BATCH}/history?limit=50"


async def by_itself(record: PostgresArchive, server: EmbeddedServer, seconds: float, batches: int) -> Measured:
    """Read the states of batches past the service, one after the other."""
    latencies: list[float] = []
    process_id = process_id_of(server)
    cpu, postgres_cpu, began = time.process_time(), family_cpu_seconds(process_id), time.perf_counter()
    for number in count():
        asked_at = time.perf_counter()
        if asked_at > began + seconds:
            break
        await record.state(batch_of(number % batches))
        latencies.append(time.perf_counter() - asked_at)
    cpu, postgres_cpu = time.process_time() - cpu, family_cpu_seconds(process_id) - postgres_cpu
    return Measured(
        "record: read a batch's state",
        len(latencies),
        len(latencies) / sum(latencies),
        cpu / len(latencies) * 1e6,
        postgres_cpu_us=postgres_cpu / len(latencies) * 1e6,
        **percentiles_ms(latencies),
    )


async def measured(world: World, seconds: float, rounds: int, batches: int) -> list[Measured]:
    """Ask about batches that Redis does not know, each once; about the same ones again; and for histories."""
    rows: list[list[Measured]] = [[] for _ in range(3 * len(_CALLERS))]
    for _ in range(rounds):
        for number, callers in enumerate(_CALLERS):
            await world.settled()
            for node in await world.nodes.all_nodes():
                await node.call(("FLUSHALL",))
            of_caller = rows[3 * number : 3 * number + 3]
            who = f"{callers} at a time"
            asked = Order(world.port, body(ANY_BATCH, correlation_id="bench"), callers, seconds, batches, once=True)
            cold = await ask(world, f"resolve, unknown to Redis, {who}", asked)
            asked = Order(world.port, asked.body, callers, seconds, cold.operations)
            warm = await ask(world, f"resolve, the same again, {who}", asked)
            await world.settled()
            page = Order(world.port, "", callers, seconds, batches, path=_PAGE)
            history = await ask(world, f"history, first page, {who}", page)
            for row, figures in zip(of_caller, (cold, warm, history), strict=True):
                row.append(figures)
    return [middle(row) for row in rows]
