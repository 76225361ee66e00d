"""What a process has used, as Linux counts it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bcs.devtools.servers.embedded import EmbeddedServer

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(process_id: int) -> float:
    """User and system time of a process, all threads together."""
    return sum(_ticks(process_id)[:2]) / _TICKS


def family_cpu_seconds(process_id: int) -> float:
    """The same for a process and all children that it has or had."""
    while True:
        own = sum(_ticks(process_id)) / _TICKS
        children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
        try:
            return own + sum(map(cpu_seconds, map(int, children)))
        except (FileNotFoundError, ProcessLookupError):
            continue  # a child has ended since, and counts to its parent now


def per_operation(before: dict[str, float], after: dict[str, float], operations: int) -> dict[str, float]:
    """Microseconds for each operation, of seconds before and after them."""
    return {name: (seconds - before[name]) / operations * 1e6 for name, seconds in after.items()}


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
