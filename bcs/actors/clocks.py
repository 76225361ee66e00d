"""Compares event times with two clocks: an event may lie in the future, or a clock may be wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from bcs.domain.times import microseconds
from bcs.errors import ClocksDiffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The clock of this process, and the clock of the store.

    :param now: wall-clock time of this process.
    :param store_time_us: requests the time of the server that has a batch, in microseconds since 1970 UTC.
    :param max_skew_seconds: the most that the clocks may differ, and that an event may be ahead.
    """

    now: Callable[[], datetime]
    store_time_us: Callable[[str], Awaitable[int]]
    max_skew_seconds: float

    def seems_ahead(self, at_us: int) -> bool:
        """True if a time is too far ahead of the clock of this process."""
        return at_us > self.latest_us()

    def latest_us(self) -> int:
        """The latest time that is not too far ahead of the clock of this process, in microseconds since 1970 UTC."""
        return microseconds(self.now()) + self.max_skew_us

    async def is_ahead(self, at_us: int, batch_id: str) -> bool:
        """True if a time is too far ahead of both clocks.

        :raises ClocksDiffer: the clocks differ too much, and either may be wrong.
        :raises StoreUnavailable: the store did not return its time.
        """
        if not self.seems_ahead(at_us):
            return False
        _, store_us = await self._agreeing_us(batch_id)
        return at_us > store_us + self.max_skew_us

    async def agreed_now_us(self, batch_id: str) -> int:
        """The present time by the slower clock, in microseconds since 1970 UTC.

        :raises ClocksDiffer: the clocks differ too much, and either may be wrong.
        :raises StoreUnavailable: the store did not return its time.
        """
        return min(await self._agreeing_us(batch_id))

    async def _agreeing_us(self, batch_id: str) -> tuple[int, int]:
        """The time by the clock of this process, and by the clock of the store."""
        store_us = await self.store_time_us(batch_id)
        now_us = microseconds(self.now())
        if abs(store_us - now_us) > self.max_skew_us:
            raise ClocksDiffer(abs(store_us - now_us) / 1_000_000)
        return now_us, store_us

    @property
    def max_skew_us(self) -> int:
        """The most that the clocks may differ, and that an event may be ahead, in microseconds."""
        return int(self.max_skew_seconds * 1_000_000)
