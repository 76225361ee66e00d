"""One deadline for every request, kept by one task: a timer or a scope for each would cost more than to answer it."""

from __future__ import annotations

import asyncio
import time

import anyio

# A request may overrun its deadline by this part of it.
_LOOKS_PER_DEADLINE = 50


class Deadlines:
    """Cancels the task of a request that takes too long.

    aiohttp's tasks are asyncio's own, and cancelled as such. No other request suffers from that: what they have in
    common goes on.

    :param seconds: how long each may take, at most a fiftieth more.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: dict[asyncio.Task[object], float] = {}

    def watch(self, task: asyncio.Task[object], began: float) -> None:
        """Cancel this task once its time is up, unless `forget` comes first.

        :param began: when, by `time.perf_counter`; not earlier than that of those before it.
        """
        self._began[task] = began

    def forget(self, task: asyncio.Task[object]) -> bool:
        """Its request is done with.

        :returns: False when it was cancelled; then whoever calls this takes that back.
        """
        return self._began.pop(task, None) is not None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await anyio.sleep(self._seconds / _LOOKS_PER_DEADLINE)
            overdue = time.perf_counter() - self._seconds
            while self._began:
                task, began = next(iter(self._began.items()))
                if began > overdue:
                    break  # all have the same time, so those that came later are not due either
                del self._began[task]
                task.cancel()
