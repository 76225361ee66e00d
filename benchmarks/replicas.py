"""Several replicas that write to the same batches."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack

from benchmarks.ingesting import measure
from benchmarks.measured import Measured, middle
from benchmarks.world import World, replica
from tests.support.service import BcsProcess, Orchestrator

REPLICAS = 4
_BATCHES = 200
_CONFLICTS = re.compile(r"^bcs_redis_commit_conflicts_total (\S+)$", re.MULTILINE)


async def measured(world: World, rounds: int, events: int) -> tuple[list[Measured], float]:
    """Events of the same batches, which the partitions spread over the replicas.

    :returns: a row with the CPU of all replicas together, and how many commits conflicted.
    """
    async with AsyncExitStack() as stack:
        more: list[BcsProcess] = []
        for number in range(1, REPLICAS):
            directory = world.directory / f"replica-{number}"
            process = replica(directory, world.redis, world.kafka, None, world.events)
            more.append(stack.enter_context(process))
            await process.answers()
        # The partitions are spread again while these events come.
        await measure(world, "join", "join", max(REPLICAS, events // 20), REPLICAS, more=more)
        path = f"ingest, {_BATCHES} batches, {REPLICAS} replicas, {world.broker}"
        rows = [await measure(world, path, f"replicas-{turn}", events, _BATCHES, more=more) for turn in range(rounds)]
        return [middle(rows)], sum([await _conflicts(process) for process in (world.service, *more)])


async def _conflicts(process: BcsProcess) -> float:
    async with Orchestrator(f"http://127.0.0.1:{process.environment['BCS_HTTP_PORT']}") as orchestrator:
        [count] = _CONFLICTS.findall((await orchestrator.get("/metrics")).body.decode())
    return float(count)
