"""Tells an event that is ahead of time from a clock that is wrong: two clocks are asked, ours and the store's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from bcs.domain.times import microseconds
from bcs.errors import ClocksDiffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """This process's clock, and the store's.

    :param now: wall-clock time of this process.
    :param store_time_us: asks the store for its time, in microseconds since 1970 UTC.
    :param max_skew_seconds: how far two clocks may differ, and how far ahead an event may be.
    """

    now: Callable[[], datetime]
    store_time_us: Callable[[], Awaitable[int]]
    max_skew_seconds: float

    def seems_ahead(self, at_us: int) -> bool:
        """True if a time is further ahead of our clock than may be."""
        return at_us > microseconds(self.now()) + self.max_skew_us

    async def is_ahead(self, at_us: int) -> bool:
        """True if a time is further ahead of both clocks than may be.

        :raises ClocksDiffer: it can't be said which clock is right.
        :raises StoreUnavailable: the store did not tell its time.
        """
        if not self.seems_ahead(at_us):
            return False
        _, store_us = await self._agreeing_us()
        return at_us > store_us + self.max_skew_us

    async def agreed_now_us(self) -> int:
        """The present by the clock that is behind, in microseconds since 1970 UTC.

        :raises ClocksDiffer: it can't be said which clock is right.
        :raises StoreUnavailable: the store did not tell its time.
        """
        return min(await self._agreeing_us())

    async def _agreeing_us(self) -> tuple[int, int]:
        """The time by our clock and by the store's."""
        store_us = await self.store_time_us()
        now_us = microseconds(self.now())
        if abs(store_us - now_us) > self.max_skew_us:
            raise ClocksDiffer(abs(store_us - now_us) / 1_000_000)
        return now_us, store_us

    @property
    def max_skew_us(self) -> int:
        """How far two clocks may differ, and how far ahead an event may be."""
        return int(self.max_skew_seconds * 1_000_000)
