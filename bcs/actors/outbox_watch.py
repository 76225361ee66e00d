"""Keeps what is known of the messages that wait for Kafka, wherever they wait."""

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
    """In the outbox; and in PostgreSQL, what was announced while Redis was away.

    While one of these can't be asked, what it last said stands, and ages.

    :param archive: None where there is none.
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
        """Ask both."""
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
        """How many messages wait; not a number while nobody was asked yet."""
        return sum(self._counts.values()) if self._counts else nan

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest has waited, 0 where none does; not a number while nobody was asked yet."""
        began = [self._oldest_at[place] for place, count in self._counts.items() if count]
        return self.clock() - min(began) if began else 0.0 if self._counts else nan
