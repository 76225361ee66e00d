"""What a process has used, as Linux counts it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bcs.devtools.servers.embedded import EmbeddedServer

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ServersCpu:
    """What the servers behind the service have used, in seconds.

    :param redis: of each of its servers.
    :param postgres: None where there is none.
    """

    redis: Sequence[float]
    postgres: float | None


def cpu_seconds(process_id: int) -> float:
    """User and system time of a process, all threads together."""
    # The clock of another process, as clock_getcpuclockid(3) makes its id. /proc has the same in steps of 10 ms.
    return time.clock_gettime((~process_id << 3) | 2)


def family_cpu_seconds(process_id: int) -> float:
    """The same for a process and all children that it has or had."""
    while True:
        own = sum(_ticks(process_id)) / _TICKS
        children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
        try:
            return own + sum(map(cpu_seconds, map(int, children)))
        except OSError:
            continue  # a child has ended since, and counts to its parent now


def per_operation(before: ServersCpu, after: ServersCpu, operations: int) -> dict[str, float]:
    """Microseconds for each operation, by the names of the figures in a `Measured`."""
    redis = [(end - start) / operations * 1e6 for start, end in zip(before.redis, after.redis, strict=True)]
    figures = {"redis_cpu_us": sum(redis), "redis_busiest_us": max(redis)}
    if before.postgres is not None and after.postgres is not None:
        figures["postgres_cpu_us"] = (after.postgres - before.postgres) / operations * 1e6
    return figures


def process_id_of(server: EmbeddedServer) -> int:
    """The process of a server that runs."""
    if server.process is None:
        raise RuntimeError(f"{server.name} does not run")
    return server.process.pid


def _ticks(process_id: int) -> list[int]:
    """User and system time, and that of the children that have ended."""
    # The name may hold spaces and brackets: what counts begins behind the last one.
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return list(map(int, fields[11:15]))


def resident_megabytes(process_id: int) -> float:
    """The memory that a process has."""
    [kilobytes] = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    return int(kilobytes) / 1024
