"""Finds the entries of a batch's history that recorded particular facts."""

from __future__ import annotations

import time
from collections.abc import Collection

from bcs.domain.explained import DecidingFact
from bcs.domain.history import ArchivedEntry, FactsRecorded
from bcs.storage.postgres.history_reader import HistoryReader

_PAGE_ENTRIES = 200
_MOST_PAGES = 20


async def find_entries(
    archive: HistoryReader, batch_id: str, facts: Collection[DecidingFact], *, seconds: float
) -> dict[DecidingFact, ArchivedEntry]:
    """The newest entry for each of the facts. A fact of which the newest entries have nothing is left out.

    :param seconds: no further page is read after this time.
    :raises StoreUnavailable: no answer.
    """
    sought, found = set(facts), dict[DecidingFact, ArchivedEntry]()
    before: int | None = None
    ends = time.monotonic() + seconds
    for _ in range(_MOST_PAGES):
        if not sought or time.monotonic() > ends:
            break
        page = await archive.history(batch_id, before=before, limit=_PAGE_ENTRIES)
        for archived in page:
            if isinstance(archived.entry, FactsRecorded):
                here = {fact for fact in sought if fact.is_in(archived.entry.facts)}
                found |= dict.fromkeys(here, archived)
                sought -= here
        if not page:
            break
        before = page[-1].number
    return found
