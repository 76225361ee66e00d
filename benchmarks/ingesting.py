"""Events from Kafka, until their offsets are committed."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from benchmarks.measured import Measured, middle
from benchmarks.usage import cpu_seconds, per_operation, resident_megabytes
from benchmarks.world import GROUP, World
from tests.support.events import Event, spellchecked
from tests.support.service import BcsProcess
from tests.support.waiting import wait_until


async def measured(world: World, rounds: int, events: int) -> list[Measured]:
    """Events of one batch, and of many, in turns."""
    spread = (("one batch", 1, 1), ("30 in a row", 2000, 30), ("200 batches", 200, 1), ("2000 batches", 2000, 1))
    rows: list[list[Measured]] = [[] for _ in spread]
    await measure(world, "warm-up", "warm-up", max(1, events // 20), 10)
    for turn in range(rounds):
        for row, (how, batches, in_a_row) in zip(rows, spread, strict=True):
            path, name = f"ingest, {how}, {world.broker}", f"{turn}-{batches}-{in_a_row}"
            row.append(await measure(world, path, name, events, batches, in_a_row))
    return [middle(row) for row in rows]


async def memory(world: World, events: int) -> dict[str, float]:
    """Resident memory while very many events come in, spread over ever new batches."""
    said: dict[str, float] = {}
    step = max(1, events // _LOOKS)
    for done in range(step, events + 1, step):
        taken = await measure(world, "memory", f"memory-{done}", step, 200)
        said[f"MB resident after {done} events more"] = taken.megabytes or 0.0
    return said


_LOOKS = 10
_CHUNK = 5_000
_ESSAYS = 30
_DONE_SECONDS = 300.0


async def measure(
    world: World,
    path: str,
    name: str,
    events: int,
    batches: int,
    in_a_row: int = 1,
    more: Sequence[BcsProcess] = (),
) -> Measured:
    """Let so many events pile up while the replicas stand still, and see how fast they take them in.

    :param batches: over so many the events are spread, one after the other.
    :param in_a_row: how many events of a batch come before those of the next one.
    :param more: replicas besides the world's service; the CPU is that of all together.
    """
    turns = [(*divmod(number // in_a_row, batches), number % in_a_row) for number in range(events)]
    said = [
        spellchecked(f"{name}-{batch}", f"essay-{(turn * in_a_row + place) % _ESSAYS}") for turn, batch, place in turns
    ]
    replicas, process_id = [world.service, *more], world.service.process.pid

    def used() -> float:
        return sum(cpu_seconds(replica.process.pid) for replica in replicas)

    for replica in replicas:
        replica.signal(signal.SIGSTOP)
    try:
        await _tell(world, said)
    finally:
        began, before, of_servers = time.perf_counter(), used(), world.servers_cpu()
        for replica in replicas:
            replica.signal(signal.SIGCONT)

    async def taken_in() -> bool:
        return await world.platform.caught_up(GROUP)

    await wait_until(taken_in, _DONE_SECONDS)
    seconds = time.perf_counter() - began
    cpu = used() - before
    return Measured(
        path,
        events,
        events / seconds,
        cpu / events * 1e6,
        megabytes=resident_megabytes(process_id),
        **per_operation(of_servers, world.servers_cpu(), events),
    )


async def _tell(world: World, said: list[Event]) -> None:
    for start in range(0, len(said), _CHUNK):
        await world.platform.send(*said[start : start + _CHUNK])
