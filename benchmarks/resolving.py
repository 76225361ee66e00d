"""Resolutions over HTTP: the floor, a warm answer, one with a phase pruned; and how the cost grows."""

from __future__ import annotations

import anyio.to_thread

from bcs.domain.facts import EssayPhaseEnded, Outcome
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.domain.state import delta_of
from benchmarks.generator import Load, Order, generate
from benchmarks.measured import Measured, middle
from benchmarks.usage import cpu_seconds, per_operation, resident_megabytes
from benchmarks.world import Server, World

CONNECTIONS = 16
ESSAYS = 30


_CORRELATION_ID = "550e8400-e29b-41d4-a716-{number:12}"
EACH_ITS_OWN = "550e8400-e29b-41d4-a716-{unique:12}"
"""A correlation id for requests whose batch id has the number."""


def body(batch_id: str, correlation_id: str = _CORRELATION_ID) -> str:
    """A request of the orchestrator."""
    return (
        f'{{"batch_id": "{batch_id}", "requested_pipeline": "ai_feedback", "correlation_id": "{correlation_id}", '
        '"batch_metadata": {"prompt_attached": true, "prompt_source": "context"}}'
    )


async def measure(
    world: World,
    path: str,
    asked: str,
    seconds: float,
    *,
    numbers: int = 0,
    server: Server | None = None,
    settle: bool = False,
    token: str = "",
    connections: int = CONNECTIONS,
) -> Measured:
    """Ask the same thing again and again, at full speed.

    :param numbers: that many are gone through, and then again; as many as it takes where it is 0.
    :param server: whom to ask; the service where it is None.
    :param settle: what is left to do after the answers counts too.
    :param token: of the caller; empty for none.
    :param connections: how many callers ask at the same time.
    """
    order = Order(server.port if server else world.port, asked, connections, seconds, numbers, token=token)
    return await ask(world, path, order, server=server, settle=settle)


async def ask(world: World, path: str, order: Order, *, server: Server | None = None, settle: bool = False) -> Measured:
    """Have an order carried out."""
    process_id = server.process.pid if server else world.service.process.pid
    before, of_servers = cpu_seconds(process_id), world.servers_cpu()
    load: Load = await anyio.to_thread.run_sync(generate, order)
    if settle:
        await world.settled()
    cpu = cpu_seconds(process_id) - before
    if load.statuses.keys() != {"200"}:
        raise RuntimeError(f"{path}: not all is well: {load.statuses}")
    return Measured(
        path,
        load.answers,
        load.rate,
        cpu / load.answers * 1e6,
        generator_cpu=load.cpu_seconds / load.seconds,
        megabytes=resident_megabytes(process_id),
        **load.percentiles_ms,
        **({} if server else per_operation(of_servers, world.servers_cpu(), load.answers)),
    )


async def side_by_side(world: World, seconds: float, rounds: int) -> list[Measured]:
    """The floor and the kinds of answers in turns, for all to meet the same weather."""
    await world.know("warm", ESSAYS, spellchecked=False)
    await world.know("pruned", ESSAYS, spellchecked=True)
    warm, pruned = body("warm"), body("pruned")
    unknown = body("unknown-{number:12}", correlation_id="bench")
    rows: list[list[Measured]] = [[] for _ in range(7)]
    for turn in range(rounds + 1):
        took = seconds if turn else seconds / 2
        measured = [
            await measure(world, "floor: aiohttp alone", warm, took, server=world.floor),
            await measure(world, "the load by itself: canned answers", warm, took, server=world.canned),
            await measure(world, "resolve, warm", warm, took),
            await measure(world, "resolve, unknown batch", unknown, took),
            await _just_written(world, f"written-{turn}", took),
            await measure(world, "resolve, one phase pruned", pruned, took),
        ]
        await world.settled()
        world.kafka.freeze()
        try:
            measured.append(await measure(world, "the same, Kafka away: announced later", pruned, took))
        finally:
            world.kafka.thaw()
        await world.settled()
        if turn:  # the first one warms up
            for row, figures in zip(rows, measured, strict=True):
                row.append(figures)
    return [middle(row) for row in rows]


async def _just_written(world: World, name: str, seconds: float) -> Measured:
    """Ask once about each of many batches, of which nobody has asked since they were written."""
    batches = int(seconds * _MOST_A_SECOND)
    await world.know_many(name, batches, ESSAYS)
    asked = body(f"{name}-{{number:12}}", correlation_id="bench")
    order = Order(world.port, asked, CONNECTIONS, seconds, batches, once=True)
    return await ask(world, "resolve, batch just written", order, settle=True)


# More answers than the service gives, so that each is about a batch that was not asked about before.
_MOST_A_SECOND = 8_000


async def bytes_of_a_batch(world: World) -> int:
    """What one batch of 30 essays with five finished phases takes in Redis."""
    await world.know("weighed", ESSAYS, spellchecked=True)
    known = await world.store.state("weighed")
    facts = [
        EssayPhaseEnded(phase, essay, Outcome.COMPLETED, 1_764_000_000_000_000 + number)
        for phase in PLATFORM_PHASES
        for number, essay in enumerate(known.first_seen_us)
    ]
    await world.store.commit("weighed", delta_of(facts))
    await world.store.store_summary("weighed", await world.store.summary("weighed"))
    size = 0
    for node in await world.nodes.all_nodes():
        [keys] = await node.call(("KEYS", "bench:*weighed*"))
        size += sum(await node.call(*(("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys)))
    return size
