"""The permanent record: what it takes to write and to read, and what it costs the usual work."""

from __future__ import annotations

from pathlib import Path

from bcs.devtools.servers.postgres import postgres
from benchmarks import keeping, recalling, recording
from benchmarks.measured import Measured
from benchmarks.world import World, built
from tests.support.databases import archive_in
from tests.support.service import Orchestrator


async def measured(
    without: World, directory: Path, seconds: float, rounds: int, events: int, facts: int
) -> tuple[list[Measured], dict[str, float]]:
    """Fill a record, and put a service before it, beside one that has none.

    :param facts: about so many are in the record.
    :returns: the rows, and figures that are no rates.
    """
    with postgres(directory / "postgres") as server:
        async with archive_in(server.url) as record:
            batches, rows, others = await recording.measured(record, server, facts)
            rows.append(await recalling.by_itself(record, server, seconds, batches))
        async with built(directory, events, postgres=server) as within:
            rows += await recalling.measured(within, seconds, rounds, batches)
            named = (without, "without record"), (within, "with record")
            kept, ratios = await keeping.measured(*named, seconds, rounds, events)
            rows += kept
            others |= ratios
            async with Orchestrator(within.service.base) as caller:
                others["explanations let go"] = await caller.metric("bcs_history_entries_dropped_total") or 0.0
    return rows, others
