"""A service in a process of its own that measures how long its event loop stands still. Run by the soak test.

``python -m tests.soak.watched_service SETTINGS`` with a JSON object of settings. It prints where it listens and its
consumer group, measures from the first line of its input on, and at the second line prints what it measured and ends.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import anyio

from bcs.config.loading import load_settings
from bcs.observability.logs import configure_logging
from bcs.runtime.process import tune_garbage_collection
from tests.support.service import service_in_thread
from tests.support.stalls import watched


async def main(settings: dict[str, object]) -> None:
    """Serve until the second line of the input."""
    configure_logging(load_settings(**settings))
    with service_in_thread(**settings) as service:
        tune_garbage_collection()
        notify(base=service.base, group=service.group)
        sys.stdin.readline()
        async with watched(service) as stalls:
            # This thread has nothing else to do, and a thread would count as one of the service's.
            sys.stdin.readline()
        notify(
            stall_seconds=stalls.seconds,
            busy_stall_seconds=stalls.busy_seconds,
            peak_bytes=peak_bytes(),
            restarts=service.restarted(),
        )


def notify(**values: object) -> None:
    """Print values for the test."""
    sys.stdout.write(f"{json.dumps(values)}\n")
    sys.stdout.flush()


def peak_bytes() -> int:
    """The most memory that this process had (Linux)."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]))
