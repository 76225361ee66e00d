"""Searches the history: of one batch, or of all batches by a correlation id."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bcs.domain.dead_lettered import DEAD_LETTERED, REPLAYED
from bcs.domain.history import ArchivedEntry
from bcs.domain.history_filter import ERASURE, FACTS, RESOLUTION, HistoryFilter
from bcs.domain.slices import Sliced
from bcs.domain.times import LATEST_US, datetime_of
from bcs.errors import StoreCorrupted
from bcs.storage.pace import paced
from bcs.storage.postgres import sql as statements
from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.postgres.history_reader import FoundEntries
from bcs.storage.postgres.rows import DEAD_LETTER, REPLAY, archived_entry, from_text, to_text
from bcs.wire.decoding import EVENT_TYPES

_NEWEST = 2**63 - 1
# Some ten milliseconds. A slow search must not make the database count as away.
_SCANNED_AT_A_TIME = 5000


@dataclass(frozen=True, slots=True)
class HistorySearch:
    """A `HistorySearcher`, which looks at a limited number of entries for each page.

    :param page_bytes: how large a page may be; a larger entry is a page alone.
    """

    gateway: ArchiveGateway
    page_bytes: int

    async def in_batch(
        self, batch_id: str, wanted: HistoryFilter, *, before: int | None = None, limit: int
    ) -> FoundEntries:
        """See `HistorySearcher.in_batch`.

        :raises StoreCorrupted: this release does not write such rows.
        """
        return await self._page(statements.MATCHING, to_text(batch_id), wanted, before, limit)

    async def everywhere(
        self, correlation_id: str, wanted: HistoryFilter, *, before: int | None = None, limit: int
    ) -> FoundEntries:
        """See `HistorySearcher.everywhere`.

        :raises StoreCorrupted: this release does not write such rows.
        """
        return await self._page(statements.CORRELATED, to_text(correlation_id), wanted, before, limit)

    async def _page(
        self, statement: str, subject: str, wanted: HistoryFilter, before: int | None, limit: int
    ) -> FoundEntries:
        kind, topic, event_type = _type(wanted.entry_type)
        correlation_id = None if wanted.correlation_id is None else to_text(wanted.correlation_id)
        times = (
            None if at_us is None else datetime_of(max(0, min(at_us, LATEST_US)))
            for at_us in (wanted.since_us, wanted.until_us)
        )
        arguments = before or _NEWEST, _SCANNED_AT_A_TIME, *times, kind, topic, event_type

        async def read(connection: Any) -> Any:
            if statement is statements.MATCHING:
                found = await connection.fetchrow(statement, subject, *arguments, correlation_id)
            else:
                found = await connection.fetchrow(statement, subject, *arguments)
            keys, numbers = (found["keys"] or [])[: limit + 1], (found["numbers"] or [])[: limit + 1]
            rows = await connection.fetch(statements.ENTRIES, keys[:limit], numbers[:limit], self.page_bytes)
            return found, numbers, rows

        found, numbers, rows = await self.gateway.run(read)
        with _as_corruption():
            entries = await paced(_entries(rows))
        if len(entries) < len(numbers):
            # What was deleted meanwhile must not be looked for for ever.
            continues_before = entries[-1].number if entries else numbers[0]
        elif found["scanned"] == _SCANNED_AT_A_TIME:
            continues_before = found["lowest"]
        else:
            continues_before = None
        return FoundEntries(entries, found["scanned"], continues_before)


def _type(entry_type: str | None) -> tuple[str | None, str | None, str | None]:
    """The kind, the topic, and the event type where no topic says it."""
    if entry_type is None or entry_type in (FACTS, RESOLUTION, ERASURE):
        return entry_type, None, None
    if entry_type == DEAD_LETTERED:
        return DEAD_LETTER, None, None
    if entry_type == REPLAYED:
        return REPLAY, None, None
    if entry_type in EVENT_TYPES:
        return FACTS, EVENT_TYPES[entry_type], None
    return FACTS, None, to_text(entry_type)


def _entries(rows: Sequence[Any]) -> Sliced[list[ArchivedEntry]]:
    entries: list[ArchivedEntry] = []
    for row in rows:
        entries.append(archived_entry(from_text(row["batch_id"]), row))
        yield
    return entries


@contextmanager
def _as_corruption() -> Any:
    try:
        yield
    except ValueError as error:
        raise StoreCorrupted("postgresql, the history", str(error)) from error
