"""Reads batches from Redis and the archive, and writes nothing, neither to complete a copy nor to keep a summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from bcs.domain.columns import tallying
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarizing
from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.pace import paced
from bcs.storage.ports import REDIS
from bcs.storage.redis.archive_queue import ArchiveQueue
from bcs.storage.redis.batch_codec import StoredBatch
from bcs.storage.redis.stored_batches import BatchCopy, StoredBatches
from bcs.storage.redis.summary_cache import KeptSummary, SummaryCache

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive

# Larger replies would delay other callers on the shared connection.
_ESSAYS_SHARED = 200
# Of a plan many batches are read at a time.
_LARGE_READS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOnlyStore:
    """The batches in Redis, completed from the archive in memory only; a `BatchSource`.

    :param backfill: None if there is no archive.
    """

    batches: StoredBatches
    backfill: ArchiveBackfill | None
    law: CompletionLaw
    _summaries: SummaryCache = field(default_factory=SummaryCache, init=False)
    _large_reads: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(_LARGE_READS), init=False)

    async def summary(self, batch_id: str, law: CompletionLaw | None = None) -> BatchSummary:
        """See `BatchSource.summary`. This process keeps the summaries of complete copies."""
        law = law or self.law
        head = await self.batches.head(batch_id)
        if head.version is not None and self._is_complete(head.stamp, head.redis):
            kept, version = self._summaries.get(batch_id, law.fingerprint), str(head.version).encode()
            if kept and (kept.redis, kept.version) == (head.redis, version):
                return kept.summary
            stored = await self._read(batch_id, large=head.essays > _ESSAYS_SHARED)
            if not stored.former and stored.version and self._is_complete(stored.stamp, stored.redis):
                summary = await paced(tallying(stored.registers, stored.columns, law, stored.version))
                if summary is not None:
                    version = str(stored.version).encode()
                    self._summaries.put(batch_id, KeptSummary(stored.redis, version, summary, law=law.fingerprint))
                    return summary
        copy = await self._complete(batch_id)
        return await paced(summarizing(copy.state, law, copy.version))

    async def _read(self, batch_id: str, *, large: bool) -> StoredBatch:
        if not large:
            return await self.batches.read(batch_id, shared=True)
        async with self._large_reads:
            return await self.batches.read(batch_id)

    def _is_complete(self, stamp: str | None, redis: str) -> bool:
        return self.backfill is None or self.backfill.is_complete(stamp, redis)

    async def state(self, batch_id: str) -> BatchState:
        """See `BatchSource.state`."""
        return (await self._complete(batch_id)).state

    async def partial_state(self, batch_id: str) -> BatchState:
        """See `BatchSource.partial_state`."""
        return (await self.batches.copy(batch_id)).state

    async def snapshot(self, batch_id: str) -> tuple[BatchState, int]:
        """See `SnapshotSource.snapshot`."""
        copy = await self._complete(batch_id)
        return copy.state, copy.version

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


def read_only_backfill(archive: PostgresArchive, queue: ArchiveQueue | None = None) -> ArchiveBackfill:
    """A backfill for readers that write nothing, neither to the archive nor a stamp to Redis.

    :param queue: the facts that wait for the archive; None for commands, which read no queue.
    """
    if queue is not None:
        return ArchiveBackfill(ReadOnlyArchive(archive), queue.waiting, oldest_seconds=queue.oldest_seconds)

    async def unknown(_batch_id: str) -> int:
        return 1  # not zero, because facts may wait

    return ArchiveBackfill(ReadOnlyArchive(archive), unknown)
