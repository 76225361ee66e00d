"""The state store in Redis: WATCH, read, merge, MULTI/EXEC, and a summary that makes reads cheap."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import anyio

from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarizing
from bcs.domain.state import BatchState
from bcs.errors import CommitConflict, StoreUnavailable
from bcs.observability.failpoints import FailPoint, hit
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.committing import CommitPolicy, commit_with
from bcs.storage.pace import paced
from bcs.storage.ports import Committed
from bcs.storage.redis.batch_codec import BatchKeys, decode_summary
from bcs.storage.redis.batch_commands import StoredBatch, decoding, encoding, merge, watch
from bcs.storage.redis.dry_run import reading, writing
from bcs.storage.redis.gateway import RedisGateway, RedisSession
from bcs.storage.redis.stored_batches import StoredBatches, as_corruption
from bcs.storage.roster import Roster
from bcs.storage.single_flight import SingleFlight

# Longer than the interval at which waiting facts are retried.
_REFUSAL_SECONDS = 5.0


class RedisStateStore:
    """The state store in Redis, in front of the archive if there is one.

    All keys of a batch are written together, expire together, and are read in one transaction. So a reader gets either
    the complete batch or nothing.

    With an archive, a batch that may lack something is backfilled from the archive whenever it is read or written.
    Facts must be in the archive, or in the queue before it, before they are committed here. So Redis may lose data at
    any time.

    The state has one summary for each law, so that replicas with different definitions, which run together during a
    deployment, do not overwrite each other's summary. A commit keeps only its own summary, because all others are of an
    older version then.

    :param law: the law of the summaries.
    :param key_prefix: the prefix of every key.
    :param ttl_seconds: how long a batch is kept after its last write.
    :param backfill: reads the archive; None without an archive.
    :param max_essays: how many essays a batch may have; None for no limit.
    """

    def __init__(
        self,
        gateway: RedisGateway,
        *,
        law: CompletionLaw,
        key_prefix: str,
        ttl_seconds: int,
        policy: CommitPolicy | None = None,
        backfill: ArchiveBackfill | None = None,
        max_essays: int | None = None,
    ) -> None:
        self._roster = Roster(max_essays)
        self._gateway = gateway
        self._batches = StoredBatches(gateway, key_prefix=key_prefix)
        self._reads, self._writes = reading(key_prefix), writing(key_prefix)
        self._law = law
        self._ttl_ms = ttl_seconds * 1000
        self._policy = policy or CommitPolicy()
        self._backfill = backfill
        self._refusal, self._refused_at = "", 0.0
        self._flights: SingleFlight[BatchSummary] = SingleFlight()

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        """See `StateStore.commit`."""
        keys = self._batches.keys(batch_id)

        async def optimistically() -> None:
            async with self._gateway.session() as session:
                replies = (await session.call(*watch(keys)))[1:]
                stored = await paced(decoding(keys, replies, session.peer.identity), session.paused)
                if self._backfill is None:
                    self._roster.ensure_room_among(stored.state.first_seen_us, delta.first_seen_us)
                additions, stamp = delta, stored.stamp
                if self._backfill and not self._backfill.is_complete(stamp, stored.redis):
                    # If the archive is away, the batch keeps its old stamp, which shows that the archive may have more
                    # of it.
                    with session.paused():
                        backfilled = await self._backfill.backfill(batch_id, stored.state, stored.redis)
                    if backfilled:
                        additions, stamp = backfilled.state, backfilled.stamp
                        await paced(additions.merging(delta), session.paused)
                changed = await paced(stored.state.merging(additions), session.paused)
                await hit(FailPoint.BEFORE_EXEC, batch_id)
                written = await self._write(session, keys, stored, changed, stored.version + 1, self._ttl_ms, stamp)
                await hit(FailPoint.AFTER_EXEC, batch_id)
            if not written:
                raise CommitConflict(batch_id)
            self._roster.note_size(batch_id, len(stored.state.first_seen_us))

        async def register_by_register() -> None:
            # Each register is merged inside Redis, so nothing is overwritten unread. The summary would need all
            # registers, so it is deleted, and the next reader makes a new one.
            await self._gateway.call(merge(keys, delta, self._ttl_ms))

        try:
            with as_corruption(keys):
                committed = await commit_with(self._policy, optimistically, register_by_register)
        except StoreUnavailable as failure:
            if failure.answered:
                self._refusal, self._refused_at = failure.cause, anyio.current_time()
            raise
        self._refusal = ""
        return committed

    async def ensure_room(self, batch_id: str, essays: Collection[str]) -> None:
        """See `StateStore.ensure_room`."""
        if self._roster.has_room(batch_id, len(essays)):
            return
        keys = self._batches.keys(batch_id)
        with as_corruption(keys):
            [size] = await self._gateway.call_multiplexed(("HLEN", keys.essays))
            self._roster.note_size(batch_id, size)
            if self._roster.has_room(batch_id, len(essays)):
                return
            ids = list(essays)
            # Not on the shared connection, because the reply may be large.
            [rows] = await self._gateway.call(("HMGET", keys.essays, *ids))
        new_essays = (essay for essay, row in zip(ids, rows, strict=True) if row is None)
        self._roster.ensure_room(size, new_essays)

    async def summary(self, batch_id: str) -> BatchSummary:
        """See `StateStore.summary`."""
        keys = self._batches.keys(batch_id)
        with as_corruption(keys):
            replies = await self._gateway.call_multiplexed(("HGET", keys.summaries, self._law.fingerprint))
        if (stored := replies[0]) is not None:
            summary, stamp = decode_summary(keys.summaries, stored)
            redis = replies.peer.identity
            if self._backfill is None or self._backfill.is_complete(stamp, redis):
                return summary
            if not self._backfill.archive.reachable:
                self._backfill.ensure_same_redis(stamp, redis)
                self._backfill.require_registered(summary.registered)
                return summary
        return await self._flights.do(batch_id, partial(self._restored, batch_id, keys))

    async def state(self, batch_id: str) -> BatchState:
        """See `StateStore.state`."""
        stored = await self._batches.read(batch_id)
        await self._complete(batch_id, stored)
        return stored.state

    async def partial_state(self, batch_id: str) -> BatchState:
        """See `StateStore.partial_state`."""
        return (await self._batches.read(batch_id)).state

    def ensure_reachable(self) -> None:
        """See `StateStore.ensure_reachable`."""
        self._gateway.ensure_reachable()

    def ensure_writable(self) -> None:
        """See `StateStore.ensure_writable`."""
        self.ensure_reachable()
        if self._refusal and anyio.current_time() < self._refused_at + _REFUSAL_SECONDS:
            raise StoreUnavailable("redis", self._refusal, answered=True)

    async def time_us(self) -> int:
        """See `StateStore.time_us`."""
        [[seconds, microseconds]] = await self._gateway.call(("TIME",))
        return int(seconds) * 1_000_000 + int(microseconds)

    async def ping(self) -> None:
        """See `StateStore.ping`."""
        await self._gateway.ping(reads=self._reads, writes=self._writes)

    @property
    def problem(self) -> str:
        """See `StateStore.problem`."""
        return self._gateway.problem

    async def _restored(self, batch_id: str, keys: BatchKeys) -> BatchSummary:
        """Make the summary from the state, and store it, unless other writers win every attempt."""
        found = list[BatchSummary]()

        async def optimistically() -> None:
            async with self._gateway.session() as session:
                *watched, remaining_ms = await session.call(*watch(keys), ("PTTL", keys.meta))
                stored = await paced(decoding(keys, watched[1:], session.peer.identity), session.paused)
                with session.paused():
                    changed, stamp = await self._complete(batch_id, stored)
                version = stored.version if changed.empty else stored.version + 1
                found.append(await paced(summarizing(stored.state, self._law, version), session.paused))
                if stored.state.empty or (remaining_ms <= 0 and changed.empty):
                    # Nothing is stored, or the batch has just expired. The empty transaction checks that this is still
                    # so.
                    if (await session.call(("MULTI",), ("EXEC",)))[-1] is None:
                        raise CommitConflict(batch_id)
                    return
                # A read does not extend the time to live.
                ttl_ms = remaining_ms if remaining_ms > 0 else self._ttl_ms
                written = await self._write(session, keys, stored, changed, version, ttl_ms, stamp)
            if not written:
                raise CommitConflict(batch_id)

        async def without_storing() -> None:
            stored = await self._batches.read(batch_id)
            await self._complete(batch_id, stored)
            found.append(await paced(summarizing(stored.state, self._law, stored.version)))

        with as_corruption(keys):
            await commit_with(self._policy, optimistically, without_storing)
        return found[-1]

    async def _complete(self, batch_id: str, stored: StoredBatch) -> tuple[BatchState, str | None]:
        """Backfill a batch; return the changes, and the complete stamp if the batch is complete now."""
        if self._backfill is None:
            return BatchState(), None
        return await self._backfill.complete(batch_id, stored.state, stored.stamp, stored.redis)

    async def _write(
        self,
        session: RedisSession,
        keys: BatchKeys,
        stored: StoredBatch,
        changed: BatchState,
        version: int,
        ttl_ms: int,
        stamp: str | None,
    ) -> bool:
        """Write the changes and the summary; False when another writer changed the batch since it was read."""
        calculation = encoding(keys, stored, changed, version, ttl_ms, stamp, self._law)
        commands = await paced(calculation, session.paused)
        replies = await session.call(("MULTI",), *commands, ("EXEC",))
        return replies[-1] is not None
