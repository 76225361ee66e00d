"""How long a service's event loop stands still."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from tests.support.service import RunningService

_BEAT_SECONDS = 0.005


@dataclass
class Stalls:
    """The longest time for which the loop did nothing else than one turn.

    :param busy_seconds: that it worked in that time. The rest of it went to other processes and threads.
    """

    seconds: float = 0.0
    busy_seconds: float = 0.0


@asynccontextmanager
async def watched(service: RunningService) -> AsyncIterator[Stalls]:
    """Watch the loop of a service that runs in a thread of its own."""
    stalls = Stalls()

    async def watch() -> None:
        while True:
            began, worked = time.perf_counter(), time.thread_time()
            # The measure itself: how much later than asked for it comes back.
            await anyio.sleep(_BEAT_SECONDS)
            stalls.seconds = max(stalls.seconds, time.perf_counter() - began - _BEAT_SECONDS)
            stalls.busy_seconds = max(stalls.busy_seconds, time.thread_time() - worked)

    watching = service.begin(watch)
    try:
        yield stalls
    finally:
        watching.cancel()
