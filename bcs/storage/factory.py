"""Opens the stores of a process: the state of batches, the outbox, and the archive."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, time_ns

from bcs.config.redis_servers import RedisKind
from bcs.config.settings import Settings
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary
from bcs.storage.archive import Archive
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.batch_index import BatchIndex
from bcs.storage.committing import CommitPolicy
from bcs.storage.memory import MemoryBatchIndex, MemoryOutbox, MemoryStateStore
from bcs.storage.ports import MEMORY, REDIS, Outbox, SnapshotSource, StateStore
from bcs.storage.postgres.opening import open_archive
from bcs.storage.read_only import ReadOnlyStore, read_only_backfill
from bcs.storage.redis.archive_queue import EXPLANATIONS, FACTS, ArchiveQueue
from bcs.storage.redis.batch_index import RedisBatchIndex
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.cluster import ClusterNodes
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.outbox import RedisOutbox
from bcs.storage.redis.skips import RedisSkips
from bcs.storage.redis.stored_batches import StoredBatches
from bcs.storage.redis.stream_layouts import StreamLayouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Persistence:
    """The stores of one process, and the connections behind them.

    :param store_name: the name of the state store in answers.
    :param nodes: the connections to Redis; None where the state is in memory.
    :param archive: None without an archive.
    :param snapshots: reads the same batches, and writes nothing.
    :param index: finds batches, in the archive if there is one.
    :param snapshot_index: finds the same batches, and writes nothing.
    :param skips: operators' orders to skip messages; None where the state is in memory.
    :param written_index: the index that has to be written at intervals; None where there is none in Redis.
    """

    store_name: str
    nodes: Nodes | None
    store: StateStore
    outbox: Outbox
    snapshots: SnapshotSource
    index: BatchIndex
    snapshot_index: BatchIndex
    archive: Archive | None = None
    skips: RedisSkips | None = None
    written_index: RedisBatchIndex | None = None

    def circuit(self) -> str:
        """The state of the circuit breaker before the store."""
        return self.nodes.circuit if self.nodes else "closed"

    async def aclose(self) -> None:
        """Close all connections."""
        if self.nodes:
            await self.nodes.aclose()
        if self.archive:
            await self.archive.postgres.aclose()


def open_persistence(
    settings: Settings,
    *,
    law: CompletionLaw,
    summary_made: Callable[[str, BatchSummary, CompletionLaw], None] = lambda *_: None,
) -> Persistence:
    """Open the stores of the settings; each connects when it is first used.

    :param law: the law of summaries whose caller names no law.
    :param summary_made: gets what `StateStore.store_summary` needs of each summary that was made for an answer.
    :raises PostgresClientMissing: a database is set, and the packages for PostgreSQL are not installed.
    """
    if settings.use_mock_repository:
        memory_index = MemoryBatchIndex(settings.redis_ttl_seconds, _now_us)
        memory = MemoryStateStore(
            law=law,
            ttl_seconds=settings.redis_ttl_seconds,
            clock=monotonic,
            max_essays=settings.max_essays_per_batch,
            changed=memory_index.note,
        )
        return Persistence(
            store_name=MEMORY,
            nodes=None,
            store=memory,
            outbox=MemoryOutbox(settings.outbox_max_messages, monotonic, settings.announce_once_seconds),
            snapshots=memory,
            index=memory_index,
            snapshot_index=memory_index,
        )
    nodes = redis_nodes(settings)
    # Different from any other process, including earlier ones of this replica, whose leases expire by time.
    consumer = f"{settings.instance}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    layouts = StreamLayouts(
        nodes,
        key_prefix=settings.redis_key_prefix,
        layout=settings.outbox_streams,
        now_ms=lambda: time_ns() // 1_000_000,
    )
    archive = _archive(settings, layouts, consumer)
    index = redis_index(settings, nodes)
    backfill = None
    if archive:
        backlog = archive.backlog
        backfill = ArchiveBackfill(archive.postgres, backlog.waiting, oldest_seconds=backlog.oldest_seconds)
    store = RedisStateStore(
        nodes,
        law=law,
        key_prefix=settings.redis_key_prefix,
        ttl_seconds=settings.redis_ttl_seconds,
        policy=CommitPolicy(settings.redis_commit_attempts),
        backfill=backfill,
        max_essays=settings.max_essays_per_batch,
        summary_made=summary_made,
        changed=index.note if archive is None else lambda _: None,
    )
    outbox = RedisOutbox(
        layouts,
        consumer=consumer,
        limit=settings.outbox_max_messages,
        explanations=archive.explanations if archive else None,
        announce_once_seconds=settings.announce_once_seconds,
    )
    skips = RedisSkips(nodes, key_prefix=settings.redis_key_prefix)
    snapshots = ReadOnlyStore(
        batches=StoredBatches(nodes, key_prefix=settings.redis_key_prefix),
        backfill=read_only_backfill(archive.postgres, archive.backlog) if archive else None,
        law=law,
    )
    return Persistence(
        store_name=REDIS,
        nodes=nodes,
        store=store,
        outbox=outbox,
        snapshots=snapshots,
        index=archive.postgres.batches if archive else index,
        snapshot_index=archive.postgres.batches if archive else redis_index(settings, nodes, read_only=True),
        archive=archive,
        skips=skips,
        written_index=index if archive is None else None,
    )


def redis_index(settings: Settings, nodes: Nodes, *, read_only: bool = False) -> RedisBatchIndex:
    """The index of the batches in Redis, which is written where there is no archive.

    :param read_only: see `RedisBatchIndex`.
    """
    return RedisBatchIndex(
        nodes,
        key_prefix=settings.redis_key_prefix,
        ttl_seconds=settings.redis_ttl_seconds,
        max_batches=settings.batch_index_max_batches,
        now_us=_now_us,
        read_only=read_only,
    )


def _now_us() -> int:
    return time_ns() // 1000


def redis_nodes(
    settings: Settings,
    *,
    max_connections: int | None = None,
    breaker_failures: int | None = None,
    needs_identity: bool | None = None,
) -> Nodes:
    """The connections to the Redis of the settings.

    :param max_connections: to each server, instead of the settings' number.
    :param breaker_failures: instead of the settings' number.
    :param needs_identity: whether a missing identity of a server is a problem; None where there is an archive.
    """
    if needs_identity is None:
        # To notice that Redis may lack data that the archive has.
        needs_identity = settings.database_url is not None
    kind = ClusterNodes if settings.redis.servers.kind is RedisKind.CLUSTER else RedisGateway
    return kind(
        settings.redis,
        max_connections=max_connections or settings.redis_max_connections,
        deadline_seconds=settings.redis_deadline_seconds,
        breaker_failures=breaker_failures or settings.redis_breaker_failures,
        breaker_open_seconds=settings.redis_breaker_open_seconds,
        needs_identity=needs_identity,
    )


def _archive(settings: Settings, layouts: StreamLayouts, consumer: str) -> Archive | None:
    if settings.database_url is None:
        return None
    # Explanations have a queue of their own: one nearly always waits, and would look like facts that the archive lacks.
    backlog, explanations = (
        ArchiveQueue(layouts, name=name, consumer=consumer, limit=settings.archive_max_entries)
        for name in (FACTS, EXPLANATIONS)
    )
    return Archive(open_archive(settings), backlog, explanations)
