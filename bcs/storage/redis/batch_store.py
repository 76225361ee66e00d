"""The state of batches in Redis: WATCH, read, merge, MULTI/EXEC; and a summary that makes reading it cheap."""

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
from bcs.storage.redis.stored_batches import StoredBatches, corruption_named
from bcs.storage.roster import Roster
from bcs.storage.single_flight import SingleFlight

# Facts that wait for it are tried again sooner than that.
_REFUSAL_SECONDS = 5.0


class RedisStateStore:
    """The state store in Redis, in front of a permanent record if there is one.

    All keys of a batch are written and expire together, and are read in one transaction: a batch is seen whole or not
    at all.

    With a record, a batch that may lack something is united with what that has, whenever it is read or written. What is
    committed must be in the record already, or in the queue before it: so Redis may forget at any time.

    Beside the state lies one summary for each law that somebody reads by: replicas with different definitions, as there
    are during a deployment, do not overwrite each other's. A commit leaves only its own, as all others are of an older
    version then.

    :param law: what summaries are made by.
    :param key_prefix: stands before every key.
    :param ttl_seconds: how long a batch is kept after its last write.
    :param recall: asks the record.
    :param max_essays: how many a batch may have; None for any number.
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
                    # Without a backfill the batch keeps its old stamp, which says that the batch had a past.
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
            self._roster.note(batch_id, len(stored.state.first_seen_us))

        async def register_by_register() -> None:
            # Each register is merged where it lies, so nothing is overwritten unread; the summary, which would need
            # them all, is dropped, and the next reader makes it anew.
            await self._gateway.call(merge(keys, delta, self._ttl_ms))

        try:
            with corruption_named(keys):
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
        with corruption_named(keys):
            [size] = await self._gateway.call_multiplexed(("HLEN", keys.essays))
            self._roster.note(batch_id, size)
            if self._roster.has_room(batch_id, len(essays)):
                return
            ids = list(essays)
            # Not shared with others, since it may be large.
            [records] = await self._gateway.call(("HMGET", keys.essays, *ids))
        strangers = (essay for essay, record in zip(ids, records, strict=True) if record is None)
        self._roster.ensure_room(size, strangers)

    async def summary(self, batch_id: str) -> BatchSummary:
        """See `StateStore.summary`."""
        keys = self._batches.keys(batch_id)
        with corruption_named(keys):
            replies = await self._gateway.call_multiplexed(("HGET", keys.summaries, self._law.fingerprint))
        if (stored := replies[0]) is not None:
            summary, stamp = decode_summary(keys.summaries, stored)
            redis = replies.peer.identity
            if self._backfill is None or self._backfill.is_complete(stamp, redis):
                return summary
            if not self._backfill.record.reachable:
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
        """The summary made anew, and stored unless other writers come in between each time."""
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
                    # Nothing is known, or the batch has just expired: if that is still so.
                    if (await session.call(("MULTI",), ("EXEC",)))[-1] is None:
                        raise CommitConflict(batch_id)
                    return
                # What was known before is kept no longer for having been read.
                ttl_ms = remaining_ms if remaining_ms > 0 else self._ttl_ms
                written = await self._write(session, keys, stored, changed, version, ttl_ms, stamp)
            if not written:
                raise CommitConflict(batch_id)

        async def without_storing() -> None:
            stored = await self._batches.read(batch_id)
            await self._complete(batch_id, stored)
            found.append(await paced(summarizing(stored.state, self._law, stored.version)))

        with corruption_named(keys):
            await commit_with(self._policy, optimistically, without_storing)
        return found[-1]

    async def _complete(self, batch_id: str, stored: StoredBatch) -> tuple[BatchState, str | None]:
        """Backfill a batch; return what that changed, and the complete stamp if the batch is complete now."""
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
        """Write what changed, and the summary; False when somebody else wrote to the batch since it was read."""
        calculation = encoding(keys, stored, changed, version, ttl_ms, stamp, self._law)
        commands = await paced(calculation, session.paused)
        replies = await session.call(("MULTI",), *commands, ("EXEC",))
        return replies[-1] is not None
