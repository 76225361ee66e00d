"""Reads the record that the settings name, without a service. Nothing is written, the schema included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import structlog

from bcs.config.settings import Settings
from bcs.domain.state import BatchState
from bcs.runtime import running
from bcs.storage.postgres.history_reader import HistoryPage, read_page
from bcs.storage.postgres.opening import open_record

if TYPE_CHECKING:
    from bcs.storage.postgres.archive import PostgresArchive

T = TypeVar("T")


def read_recorded(settings: Settings, batch_id: str) -> BatchState:
    """A batch's state as it is on record.

    :raises ConfigurationError: there is no record that could be read.
    :raises StoreUnavailable: no answer, and never a guess.
    :raises SchemaOutdated: this release can't read it yet.
    """
    return _reading(settings, lambda record: record.state(batch_id))


def read_history(settings: Settings, batch_id: str, *, before: int | None, limit: int) -> HistoryPage | None:
    """A page of a batch's history; None when nothing at all is on record of the batch.

    :param before: only entries with lower numbers than this.
    :param limit: at most so many.
    :raises ConfigurationError: there is no record that could be read.
    :raises StoreUnavailable: no answer.
    :raises SchemaOutdated: this release can't read it yet.
    """
    return _reading(settings, lambda record: read_page(record, batch_id, before=before, limit=limit))


def _reading(settings: Settings, read: Callable[[PostgresArchive], Awaitable[T]]) -> T:
    # The record logs for a service; a command says what there is to say itself.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

    async def run() -> T:
        record = open_record(settings)
        try:
            await record.probe_unchanged(settings.database_deadline_seconds)
            return await read(record)
        finally:
            await record.aclose()

    return running.run(run)
