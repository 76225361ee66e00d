"""Reads the archive in the settings, without a service. Neither data nor the schema is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import structlog

from bcs.config.settings import Settings
from bcs.runtime import running
from bcs.storage.postgres.history_reader import HistoryPage, read_page
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
