"""Measures how long something takes, so that a machine which has much to do is not taken for a slow service."""

from __future__ import annotations

import asyncio

from bcs.storage.deadlines import lag_of


class Stopwatch:
    """Starts when it is made. The time for which the event loop of the test was held up does not count."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lag = lag_of(self._loop)
        self._began = self._net_seconds()

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return self._net_seconds() - self._began

    def _net_seconds(self) -> float:
        now = self._loop.time()
        return now - self._lag.lost_seconds(now)
