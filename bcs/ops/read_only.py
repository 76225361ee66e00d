"""Reads batches for commands, with the policy of the service. Writes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from bcs.config.settings import Settings
from bcs.domain.law import CompletionLaw
from bcs.errors import StoreUnavailable
from bcs.ops.stores import StateInMemory, connected
from bcs.storage.ports import REDIS
from bcs.storage.postgres.opening import open_archive
from bcs.storage.read_only import ReadOnlyArchive, ReadOnlyStore, read_only_backfill
from bcs.storage.redis.stored_batches import StoredBatches
from bcs.usecases.batch_reader import BatchReader


@asynccontextmanager
async def batch_reader(settings: Settings, law: CompletionLaw) -> AsyncIterator[BatchReader]:
    """The reader of batches for a command.

    :raises StateInMemory: this process can't read the store.
    :raises ConfigurationError: the archive in the settings can't be opened.
    :raises SchemaOutdated: this release can't read the schema yet.
    """
    if settings.use_mock_repository:
        raise StateInMemory

    async with AsyncExitStack() as stack:
        archive, backfill = None, None
        if settings.database_url is not None:
            archive = ReadOnlyArchive(open_archive(settings))
            stack.push_async_callback(archive.postgres.aclose)
            backfill = read_only_backfill(archive.postgres)
            with suppress(StoreUnavailable):  # then the archive counts as unreachable
                await archive.postgres.probe_unchanged(settings.database_deadline_seconds)
        nodes = await stack.enter_async_context(connected(settings, needs_identity=archive is not None))
        batches = StoredBatches(nodes, key_prefix=settings.redis_key_prefix)
        store = ReadOnlyStore(batches=batches, backfill=backfill, law=law)
        yield BatchReader(store=store, store_name=REDIS, archive=archive)
