"""Reads the history of a batch page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bcs.domain.history import ArchivedEntry
from bcs.domain.history_filter import HistoryFilter
from bcs.domain.state import BatchState


class HistoryReader(Protocol):
    """The methods of `PostgresArchive` that read a batch."""

    async def state(self, batch_id: str) -> BatchState:
        """The state of a batch in the archive; empty for an unknown batch.

        :raises StoreUnavailable: no answer.
        """
        ...

    async def history(self, batch_id: str, *, before: int | None = None, limit: int) -> list[ArchivedEntry]:
        """A page of a batch's history, newest first.

        :param before: only entries with lower numbers.
        :param limit: how many entries at most; fewer where they are large.
        :raises StoreUnavailable: no answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class FoundEntries:
    """A page of entries, newest first. Each entry names its batch.

    :param scanned: how many entries were looked at.
    :param continues_before: `before` for the next page; None after the last one. A page may be empty and not the last.
    """

    entries: Sequence[ArchivedEntry]
    scanned: int
    continues_before: int | None


class HistorySearcher(Protocol):
    """Finds entries of the history, page by page."""

    async def in_batch(
        self, batch_id: str, wanted: HistoryFilter, *, before: int | None = None, limit: int
    ) -> FoundEntries:
        """A page of a batch's history, only entries that pass a filter.

        :param before: only entries with lower numbers.
        :param limit: how many entries at most; fewer where they are large.
        :raises StoreUnavailable: no answer.
        """
        ...

    async def everywhere(
        self, correlation_id: str, wanted: HistoryFilter, *, before: int | None = None, limit: int
    ) -> FoundEntries:
        """A page of entries of all batches with a correlation id; see `in_batch`.

        :param wanted: its correlation id is not used.
        """
        ...


class SearchedHistory(HistoryReader, Protocol):
    """The methods of `PostgresArchive` that read a batch, and search."""

    @property
    def search(self) -> HistorySearcher:
        """Finds entries of the history."""
        ...


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A page of consecutive entries, newest first.

    :param continues_before: `before` for the next page; None when there are no older entries.
    """

    entries: tuple[ArchivedEntry, ...]
    continues_before: int | None


async def search_page(
    archive: SearchedHistory, batch_id: str, wanted: HistoryFilter, *, before: int | None, limit: int
) -> FoundEntries | None:
    """A page of the entries of a batch that pass a filter; None when the archive does not have the batch at all.

    :param before: only entries with lower numbers.
    :param limit: how many entries at most.
    :raises StoreUnavailable: no answer.
    """
    found = await archive.search.in_batch(batch_id, wanted, before=before, limit=limit)
    if not found.scanned and not await _is_known(archive, batch_id, before):
        return None
    return found


async def read_page(archive: HistoryReader, batch_id: str, *, before: int | None, limit: int) -> HistoryPage | None:
    """A page of a batch's history; None when the archive does not have the batch at all.

    Entries that are added between two reads have higher numbers, so no entry is repeated or left out.

    :param before: only entries with lower numbers.
    :param limit: how many entries at most.
    :raises StoreUnavailable: no answer.
    """
    kept = await archive.history(batch_id, before=before, limit=limit + 1)
    if not kept and not await _is_known(archive, batch_id, before):
        return None
    entries = tuple(kept[:limit])
    if len(kept) > limit:
        return HistoryPage(entries, entries[-1].number)
    # Fewer than the limit: there are no more, or the entries are large.
    older = entries and await archive.history(batch_id, before=entries[-1].number, limit=1)
    return HistoryPage(entries, entries[-1].number if older else None)


async def _is_known(archive: HistoryReader, batch_id: str, before: int | None) -> bool:
    # A batch may have facts without a history, and a history without facts.
    if before is not None and await archive.history(batch_id, limit=1):
        return True
    return not (await archive.state(batch_id)).empty
