"""Reads batches for commands, with the policy of the service. Writes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bcs.config.settings import Settings
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarizing
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.ops.stores import StateInMemory, connected
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.pace import paced
from bcs.storage.ports import REDIS
from bcs.storage.postgres.opening import open_archive
from bcs.storage.redis.stored_batches import BatchCopy, StoredBatches
from bcs.usecases.batch_reader import BatchReader

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOnlyStore:
    """The batches in Redis, completed from the archive in memory only; a `BatchSource`.

    :param backfill: None if there is no archive.
    """

    batches: StoredBatches
    backfill: ArchiveBackfill | None
    law: CompletionLaw

    async def summary(self, batch_id: str, law: CompletionLaw | None = None) -> BatchSummary:
        """See `BatchSource.summary`."""
        copy = await self._complete(batch_id)
        return await paced(summarizing(copy.state, law or self.law, copy.version))

    async def state(self, batch_id: str) -> BatchState:
        """See `BatchSource.state`."""
        return (await self._complete(batch_id)).state

    async def partial_state(self, batch_id: str) -> BatchState:
        """See `BatchSource.partial_state`."""
        return (await self.batches.copy(batch_id)).state

    async def _complete(self, batch_id: str) -> BatchCopy:
        copy = await self.batches.copy(batch_id)
        if self.backfill:
            await self.backfill.complete(batch_id, copy.state, copy.stamp, copy.redis)
        return copy


@dataclass(frozen=True, slots=True)
class ReadOnlyArchive:
    """The archive of the service. Does not write facts that only Redis has."""

    postgres: PostgresArchive

    @property
    def reachable(self) -> bool:
        """See `ArchivePort.reachable`."""
        return self.postgres.reachable

    @property
    def identity(self) -> str | None:
        """See `ArchivePort.identity`."""
        return self.postgres.identity

    async def state(self, batch_id: str) -> BatchState:
        """See `ArchivePort.state`."""
        return await self.postgres.state(batch_id)

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        """Do nothing: the service adds these facts when it reads the batch."""

    def can_answer_for_redis(self, error: StoreUnavailable) -> bool:
        """True while PostgreSQL answers. A command can't count the entries that wait in an unreachable Redis."""
        return error.store == REDIS and self.reachable


@asynccontextmanager
async def batch_reader(settings: Settings, law: CompletionLaw) -> AsyncIterator[BatchReader]:
    """The reader of batches for a command.

    :raises StateInMemory: this process can't read the store.
    :raises ConfigurationError: the archive in the settings can't be opened.
    :raises SchemaOutdated: this release can't read the schema yet.
    """
    if settings.use_mock_repository:
        raise StateInMemory

    async def unknown(_batch_id: str) -> int:
        return 1  # not zero, so no copy gets a complete stamp

    async with AsyncExitStack() as stack:
        archive, backfill = None, None
        if settings.database_url is not None:
            archive = ReadOnlyArchive(open_archive(settings))
            stack.push_async_callback(archive.postgres.aclose)
            backfill = ArchiveBackfill(archive, unknown)
            with suppress(StoreUnavailable):  # then the archive counts as unreachable
                await archive.postgres.probe_unchanged(settings.database_deadline_seconds)
        nodes = await stack.enter_async_context(connected(settings, needs_identity=archive is not None))
        batches = StoredBatches(nodes, key_prefix=settings.redis_key_prefix)
        store = ReadOnlyStore(batches=batches, backfill=backfill, law=law)
        yield BatchReader(store=store, store_name=REDIS, archive=archive)
