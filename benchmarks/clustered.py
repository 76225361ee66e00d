"""A Redis Cluster beside one server: what it costs the service, and how evenly the nodes share the work and the memory.

    .venv/bin/python -m benchmarks.clustered --json docs/performance-cluster.json

All nodes, both services and the load share the machine. So this says what an operation costs each node, and not how
many operations a second the nodes take.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import anyio
import structlog
import typer

from bcs.storage.redis.stream_set import StreamSet
from bcs.wire.published import phases_skipped
from benchmarks import keeping
from benchmarks.measured import Measured
from benchmarks.pasts import batch_of, told
from benchmarks.report import Report
from benchmarks.resolving import CONNECTIONS, ESSAYS
from benchmarks.world import Redis, World, built
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_queues import archive_queue, redis_outbox

FULLEST, BUSIEST = "fullest node, memory of", "busiest node, CPU for"
SPREAD = ("batches", "the outbox", "the archive's queue")
"""What is kept in the cluster to see how evenly its nodes share it."""

_KEY_PREFIX = "spread:"
_ENTRIES_OF_A_BATCH = 7
_AT_A_TIME = 200
_MANY = 10_000_000

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def main(
    masters: Annotated[int, typer.Option(help="How many nodes the cluster has.")] = 3,
    seconds: Annotated[float, typer.Option(help="How long each measurement of answers takes.")] = 2.0,
    processes: Annotated[int, typer.Option(help="How many processes of the service each of the two has, in turn.")] = 6,
    rounds: Annotated[int, typer.Option(help="How often two processes take turns; the median of all counts.")] = 2,
    events: Annotated[int, typer.Option(help="How many events are taken in at a time.")] = 20_000,
    entries: Annotated[int, typer.Option(help="How many entries are put into each queue.")] = 20_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to keep the figures.")] = None,
) -> None:
    """What a Redis Cluster costs beside one server, and how evenly its nodes share the work."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with tempfile.TemporaryDirectory(prefix="bcs-bench-") as directory:
        report = anyio.run(
            partial(measured, Path(directory), masters, processes=processes, rounds=rounds),
            seconds,
            events,
            entries,
            backend_options={"use_uvloop": True},
        )
    typer.echo(report.table())
    if json_file:
        report.save(json_file)


async def measured(
    directory: Path, masters: int, seconds: float, events: int, entries: int, *, processes: int, rounds: int
) -> Report:
    """One server and a cluster in turns; then what is kept in the cluster, and on which nodes.

    Two processes of one build may differ by a tenth, by where their objects lie in memory. So there are several. They
    have a core of their own: three servers push more out of the caches of a core that they share than one server does.
    """
    cores = sorted(os.sched_getaffinity(0))
    own, others = cores[:1], cores[1:] or cores
    os.sched_setaffinity(0, others)  # and so all processes that are started
    labels = "one server", f"{masters} masters"
    # A node of a cluster is for as much as one server can do, so as many callers for each node are asked for, too.
    callers = CONNECTIONS, CONNECTIONS * masters
    found: list[tuple[list[Measured], list[Measured]]] = []
    spread: dict[str, float] = {}
    for number in range(processes):
        at = directory / str(number)
        async with (
            RedisCluster(at / "cluster", masters=masters) as cluster,
            built(at / "one", events) as one,
            built(at / "several", events, redis=_redis_of(cluster)) as several,
        ):
            worlds = (one, labels[0]), (several, labels[1])
            for world, _ in worlds:
                _keep_on(own, world.service.process.pid)
            more = await keeping.in_turns(*worlds, seconds, rounds, events, callers=callers)
            found = found or [([], []) for _ in more]
            for (first, second), (more_first, more_second) in zip(found, more, strict=True):
                first += more_first
                second += more_second
            spread = spread or await _spread(several, entries)
    rows, ratios = keeping.medians(found, labels[0])
    return Report(rows, ratios | spread)


def _keep_on(cores: Sequence[int], process_id: int) -> None:
    for thread in Path(f"/proc/{process_id}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def _redis_of(cluster: RedisCluster) -> Redis:
    return Redis(cluster.url, [node.server for node in cluster.nodes])


async def _spread(world: World, count: int) -> dict[str, float]:
    """How much the busiest node has of the CPU, and the fullest of the memory, as multiples of what each would have."""
    queue = archive_queue(world.nodes, _KEY_PREFIX, limit=_MANY)
    outbox = redis_outbox(world.nodes, _KEY_PREFIX, limit=_MANY)
    batches = count // _ENTRIES_OF_A_BATCH
    entries = list(islice(told(0, batches, batches, batches), count))
    now = datetime.now(UTC)
    ids = (batch_of(number % batches) for number in range(count))
    messages = [
        message for batch_id in ids for message in phases_skipped(batch_id, ["spellcheck"], str(uuid.uuid4()), now)
    ]

    async def keep() -> None:
        await world.know_many("spread", batches, ESSAYS, spellchecked=True)

    async def announce() -> None:
        for start in range(0, len(messages), _AT_A_TIME):
            await outbox.append(messages[start : start + _AT_A_TIME])

    async def queue_up() -> None:
        for start in range(0, len(entries), _AT_A_TIME):
            await queue.append(entries[start : start + _AT_A_TIME])

    figures: dict[str, float] = {}
    work: list[tuple[Callable[[], Awaitable[None]], StreamSet[Any] | None]]
    work = [(keep, None), (announce, outbox), (queue_up, queue)]
    for kind, (write, drained) in zip(SPREAD, work, strict=True):
        cpu, memory = world.redis.cpu_seconds(), await _memory(world)
        await write()
        figures[f"{FULLEST} {kind}"] = _most(memory, await _memory(world))
        if drained:
            await _drain(drained)
        figures[f"{BUSIEST} {kind}"] = _most(cpu, world.redis.cpu_seconds())
    return figures


async def _drain(queue: StreamSet[Any]) -> None:
    while leased := await queue.lease(_AT_A_TIME):
        await queue.ack(leased)


async def _memory(world: World) -> list[float]:
    """The bytes that each node uses."""
    used: list[float] = []
    for node in await world.nodes.all_nodes():
        [told_by_node] = await node.call(("INFO", "memory"))
        used += [float(bytes_used) for bytes_used in re.findall(rb"^used_memory:(\d+)", told_by_node, re.MULTILINE)]
    return used


def _most(before: Sequence[float], after: Sequence[float]) -> float:
    added = [end - start for start, end in zip(before, after, strict=True)]
    return max(added) * len(added) / sum(added)


if __name__ == "__main__":
    cli()
