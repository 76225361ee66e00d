"""Reads the archive in the settings, without a service. Neither data nor the schema is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from bcs.config.settings import Settings
from bcs.domain.history import ArchivedEntry
from bcs.domain.history_filter import HistoryFilter
from bcs.runtime import running
from bcs.storage.postgres.history_reader import FoundEntries, HistoryPage, read_page, search_page
from bcs.storage.postgres.opening import open_archive

if TYPE_CHECKING:
    from bcs.storage.postgres.archive import PostgresArchive

T = TypeVar("T")


def read_history(settings: Settings, batch_id: str, *, before: int | None, limit: int) -> HistoryPage | None:
    """A page of a batch's history; None if the archive does not know the batch.

    :param before: only entries with lower numbers.
    :param limit: how many entries the page has at most.
    :raises ConfigurationError: there is no archive.
    :raises StoreUnavailable: the archive does not answer.
    :raises SchemaOutdated: this release can't read the schema yet.
    """
    return _reading(settings, lambda archive: read_page(archive, batch_id, before=before, limit=limit))


def search_history(
    settings: Settings, batch_id: str, wanted: HistoryFilter, *, before: int | None, limit: int
) -> FoundEntries | None:
    """Entries of a batch that pass a filter; None if the archive does not know the batch. Raises as `read_history`.

    :param before: only entries with lower numbers.
    :param limit: how many entries at most.
    """

    async def read(archive: PostgresArchive) -> FoundEntries | None:
        return await _from_pages(partial(search_page, archive, batch_id, wanted), before, limit)

    return _reading(settings, read)


def find_history(
    settings: Settings, correlation_id: str, wanted: HistoryFilter, *, before: int | None, limit: int
) -> FoundEntries:
    """Entries of all batches with a correlation id. Raises as `read_history`.

    :param wanted: its correlation id is not used.
    :param before: only entries with lower numbers.
    :param limit: how many entries at most.
    """

    async def read(archive: PostgresArchive) -> FoundEntries:
        found = await _from_pages(partial(archive.search.everywhere, correlation_id, wanted), before, limit)
        assert found is not None  # noqa: S101 (only a batch can be unknown)
        return found

    return _reading(settings, read)


class _ReadPage(Protocol):
    def __call__(self, *, before: int | None, limit: int) -> Awaitable[FoundEntries | None]: ...


async def _from_pages(read: _ReadPage, before: int | None, limit: int) -> FoundEntries | None:
    """As many entries as are wanted, from as many pages as that takes."""
    entries: list[ArchivedEntry] = []
    scanned = 0
    while True:
        page = await read(before=before, limit=limit - len(entries))
        if page is None:
            return None
        entries += page.entries
        scanned, before = scanned + page.scanned, page.continues_before
        if before is None or len(entries) >= limit:
            return FoundEntries(entries, scanned, before)


def _reading(settings: Settings, read: Callable[[PostgresArchive], Awaitable[T]]) -> T:
    # The archive logs for a service; a command prints its own messages.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

    async def run() -> T:
        archive = open_archive(settings)
        try:
            await archive.probe_unchanged(settings.database_deadline_seconds)
            return await read(archive)
        finally:
            await archive.aclose()

    return running.run(run)
