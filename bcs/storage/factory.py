"""What a service keeps, and where: the state of batches, the outbox, and the permanent record behind them."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from time import monotonic

from bcs.config.settings import Settings
from bcs.domain.law import CompletionLaw
from bcs.storage.archive import Archive
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.committing import CommitPolicy
from bcs.storage.memory import MemoryOutbox, MemoryStateStore
from bcs.storage.ports import MEMORY, REDIS, Outbox, StateStore
from bcs.storage.postgres.opening import open_record
from bcs.storage.redis.archive_queue import EXPLANATIONS, FACTS, FORMER_FACTS, ArchiveQueue
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.outbox import RedisOutbox
from bcs.storage.redis.skips import RedisSkips


@dataclass(frozen=True, slots=True, kw_only=True)
class Persistence:
    """The stores of one process, and the connections behind them.

    :param store_name: what the state store is called in answers.
    :param gateway: None where state is kept in memory.
    :param archive: None where there is no permanent record.
    :param skips: the orders of operators; None where there is nothing that an operator could write to.
    """

    store_name: str
    gateway: RedisGateway | None
    store: StateStore
    outbox: Outbox
    archive: Archive | None = None
    skips: RedisSkips | None = None

    def circuit(self) -> str:
        """The state of the circuit breaker before the store."""
        return self.gateway.circuit if self.gateway else "closed"

    async def aclose(self) -> None:
        """Close all connections."""
        if self.gateway:
            await self.gateway.aclose()
        if self.archive:
            await self.archive.postgres.aclose()


def open_persistence(settings: Settings, *, law: CompletionLaw) -> Persistence:
    """The stores that the settings name; nothing is connected before it is needed.

    :param law: what summaries are made by.
    :raises PostgresClientMissing: a database is named, and this installation can't ask it.
    """
    policy = CommitPolicy(settings.redis_commit_attempts)
    if settings.use_mock_repository:
        return Persistence(
            store_name=MEMORY,
            gateway=None,
            store=MemoryStateStore(
                law=law,
                ttl_seconds=settings.redis_ttl_seconds,
                clock=monotonic,
                policy=policy,
                max_essays=settings.max_essays_per_batch,
            ),
            outbox=MemoryOutbox(settings.outbox_max_messages, monotonic),
        )
    gateway = redis_gateway(settings)
    # Unlike any other process, earlier ones of this replica included: what they held is taken over by time.
    consumer = f"{settings.instance}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    archive = _archive(settings, gateway, consumer)
    backfill = ArchiveBackfill(archive.postgres, archive.waiting) if archive else None
    store = RedisStateStore(
        gateway,
        law=law,
        key_prefix=settings.redis_key_prefix,
        ttl_seconds=settings.redis_ttl_seconds,
        policy=policy,
        backfill=backfill,
        max_essays=settings.max_essays_per_batch,
    )
    outbox = RedisOutbox(
        gateway,
        key_prefix=settings.redis_key_prefix,
        consumer=consumer,
        limit=settings.outbox_max_messages,
        explanations=archive.explanations if archive else None,
    )
    skips = RedisSkips(gateway, key_prefix=settings.redis_key_prefix)
    return Persistence(store_name=REDIS, gateway=gateway, store=store, outbox=outbox, archive=archive, skips=skips)


def redis_gateway(settings: Settings) -> RedisGateway:
    """The way to the Redis that the settings name."""
    return RedisGateway(
        settings.redis_url,
        max_connections=settings.redis_max_connections,
        deadline_seconds=settings.redis_deadline_seconds,
        breaker_failures=settings.redis_breaker_failures,
        breaker_open_seconds=settings.redis_breaker_open_seconds,
        # To see that Redis may have less than the record.
        needs_identity=settings.database_url is not None,
    )


def _archive(settings: Settings, gateway: RedisGateway, consumer: str) -> Archive | None:
    if settings.database_url is None:
        return None
    # Explanations have a queue of their own: one nearly always waits, and would look like facts that the archive lacks.
    backlog, former_backlog, explanations = (
        ArchiveQueue(
            gateway,
            key_prefix=settings.redis_key_prefix,
            name=name,
            consumer=consumer,
            limit=settings.archive_max_entries,
        )
        for name in (FACTS, FORMER_FACTS, EXPLANATIONS)
    )
    return Archive(open_record(settings), backlog, former_backlog, explanations)
