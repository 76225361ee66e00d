"""What the record takes to write, and the disk that it needs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice

import asyncpg

from bcs.devtools.servers.postgres import PostgresServer
from bcs.domain.history import FactsRecorded
from bcs.storage.postgres.archive import PostgresArchive
from benchmarks.measured import Measured, percentiles_ms
from benchmarks.pasts import FACTS_OF_A_BATCH, told
from benchmarks.usage import family_cpu_seconds, process_id_of

# As many as the archive actor writes at a time.
_PORTION = 200
_TOGETHER = 200
_KILOBYTE = 1000

_SIZES = """
SELECT sum(pg_table_size(c.oid)) FILTER (WHERE relname <> 'history')::float8 AS facts,
    sum(pg_table_size(c.oid)) FILTER (WHERE relname = 'history')::float8 AS history,
    sum(pg_indexes_size(c.oid))::float8 AS indexes
FROM pg_class c WHERE relname IN ('batches', 'essays', 'marks', 'reports', 'history')
"""


async def measured(
    record: PostgresArchive, server: PostgresServer, facts: int
) -> tuple[int, list[Measured], dict[str, float]]:
    """Fill an empty record: half of it batch after batch, half of it many batches in between each other.

    :param facts: about so many.
    :returns: how many batches it holds then; the rows; and figures that are no rates.
    """
    batches = max(2, round(facts / FACTS_OF_A_BATCH))
    half = batches // 2
    rows = [
        await _written(record, server, "record: write, batch after batch", told(0, half, batches, 1)),
        await _written(record, server, f"record: write, {_TOGETHER} batches", told(half, batches, batches, _TOGETHER)),
    ]
    others = {"facts in the record": float(batches * FACTS_OF_A_BATCH)}
    for row, part in zip(rows, (half, batches - half), strict=True):
        others[f"facts a second, {row.path}"] = row.rate / row.operations * part * FACTS_OF_A_BATCH
    return batches, rows, others | await _disk(server, batches)


async def _written(
    record: PostgresArchive, server: PostgresServer, path: str, entries: Iterable[FactsRecorded]
) -> Measured:
    waiting = iter(entries)
    count, cpu, latencies = 0, 0.0, list[float]()
    postgres_before = family_cpu_seconds(process_id_of(server))
    while portion := list(islice(waiting, _PORTION)):
        began, before = time.perf_counter(), time.process_time()
        await record.write(portion)
        latencies.append(time.perf_counter() - began)
        cpu += time.process_time() - before
        count += len(portion)
    postgres_cpu = family_cpu_seconds(process_id_of(server)) - postgres_before
    return Measured(
        path,
        count,
        count / sum(latencies),
        cpu / count * 1e6,
        postgres_cpu_us=postgres_cpu / count * 1e6,
        **percentiles_ms(latencies),
    )


async def _disk(server: PostgresServer, batches: int) -> dict[str, float]:
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute("VACUUM (ANALYZE)")
        [sizes] = await connection.fetch(_SIZES)
        fsync = await connection.fetchval("SHOW fsync")
    finally:
        await connection.close()
    of_each = {name: size / batches / _KILOBYTE for name, size in sizes.items()}
    return {
        "fsync (1: on)": float(fsync == "on"),
        "kB on disk for a batch of 30 essays, 4 phases and 34 entries": sum(of_each.values()),
        **{f"kB on disk for a batch: {name}": size for name, size in of_each.items()},
    }
