"""Finds batches for commands, as the service does. Writes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

from bcs.config.settings import Settings
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarizing
from bcs.ops.stores import StateInMemory, connected
from bcs.storage.factory import redis_index
from bcs.storage.pace import paced
from bcs.storage.ports import POSTGRESQL, REDIS
from bcs.storage.postgres.opening import open_archive
from bcs.storage.redis.stored_batches import StoredBatches
from bcs.usecases.find_batches import BatchFinder, archived_summaries


@asynccontextmanager
async def batch_finder(settings: Settings, law: CompletionLaw) -> AsyncIterator[BatchFinder]:
    """A finder over the archive in the settings, or over Redis if there is none.

    :raises StateInMemory: this process can't read the store.
    :raises ConfigurationError: the archive in the settings can't be opened.
    :raises SchemaOutdated: this release can't read the schema yet.
    :raises StoreUnavailable: the store does not answer.
    """
    if settings.use_mock_repository:
        raise StateInMemory
    if settings.database_url is not None:
        archive = open_archive(settings)
        try:
            await archive.probe_unchanged(settings.database_deadline_seconds)
            yield BatchFinder(
                index=archive.batches,
                source=POSTGRESQL,
                summary=archived_summaries(archive, law),
                law=law,
                seconds=inf,
                page_bytes=settings.http_page_bytes,
            )
        finally:
            await archive.aclose()
        return
    async with connected(settings) as nodes:
        batches = StoredBatches(nodes, key_prefix=settings.redis_key_prefix)

        async def summary(batch_id: str) -> BatchSummary:
            copy = await batches.copy(batch_id)
            return await paced(summarizing(copy.state, law, copy.version))

        yield BatchFinder(
            index=redis_index(settings, nodes, read_only=True),
            source=REDIS,
            summary=summary,
            law=law,
            seconds=inf,
            page_bytes=settings.http_page_bytes,
        )
