"""Measures the messages that wait for Kafka, in the outbox and in the archive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from math import nan

from bcs.errors import StoreError
from bcs.storage.archive import Archive
from bcs.storage.ports import Outbox, Waiting


@dataclass(slots=True, kw_only=True)
class OutboxWatch:
    """The number and the age of the messages in the outbox, and of the announcements in PostgreSQL.

    PostgreSQL takes announcements while Redis is unreachable. While one of the two does not answer, its last values
    stay, and the age grows.

    :param archive: None if there is no archive.
    :param now: wall-clock time.
    :param clock: monotonic seconds.
    """

    outbox: Outbox
    archive: Archive | None
    now: Callable[[], datetime]
    clock: Callable[[], float]
    _counts: dict[str, int] = field(default_factory=dict, init=False)
    _oldest_at: dict[str, float] = field(default_factory=dict, init=False)

    async def measure(self) -> None:
        """Measure both."""
        with suppress(StoreError):
            self._set_measured("redis", await self.outbox.measure())
        if self.archive:
            with suppress(StoreError):
                self._set_measured("postgresql", await self.archive.postgres.announcements(self.now()))

    def _set_measured(self, place: str, waiting: Waiting) -> None:
        self._counts[place] = waiting.count
        self._oldest_at[place] = self.clock() - waiting.oldest_seconds

    @property
    def count(self) -> float:
        """The number of messages that wait; NaN before the first answer."""
        return sum(self._counts.values()) if self._counts else nan

    @property
    def oldest_seconds(self) -> float:
        """The age of the oldest message that waits; 0 if none waits, NaN before the first answer."""
        began = [self._oldest_at[place] for place, count in self._counts.items() if count]
        return self.clock() - min(began) if began else 0.0 if self._counts else nan
