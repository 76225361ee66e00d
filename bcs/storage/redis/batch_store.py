"""The state store in Redis: facts are merged by a script, and summaries are made when they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import structlog
from redis.exceptions import ResponseError

from bcs.domain.columns import tallying
from bcs.domain.erasure import decode_tombstone
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarizing
from bcs.domain.state import BatchState
from bcs.errors import BatchErased, CommitConflict, StoreCorrupted, StoreUnavailable, Tombstone
from bcs.observability.failpoints import FailPoint, hit
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.committing import CommitPolicy, commit_with, persistently
from bcs.storage.pace import paced
from bcs.storage.ports import Committed, ErasedCopy
from bcs.storage.redis.batch_codec import (
    COUNT_FIELD,
    ERASED_FIELD,
    LAWS_FIELD,
    STAMP_FIELD,
    VERSION_FIELD,
    BatchKeys,
    essay_field,
)
from bcs.storage.redis.batch_commands import decoding, decoding_state, merging, watch, writing
from bcs.storage.redis.commands import Command
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.erasing import erase_in_redis, look_in_redis
from bcs.storage.redis.errors import refuses_command
from bcs.storage.redis.merge_script import ERASED, FULL, INCOMPLETE, MERGE
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.stored_batches import StoredBatches, as_corruption
from bcs.storage.redis.summary_cache import KeptSummary, SummaryCache
from bcs.storage.redis.summary_codec import decode_summary, encode_summary
from bcs.storage.roster import Roster
from bcs.storage.single_flight import SingleFlight

log = structlog.stdlib.get_logger("bcs.redis")

# Longer than the interval at which waiting facts are retried.
_REFUSAL_SECONDS = 5.0
# Larger commands and replies would delay other callers on the shared connection.
_ARGUMENTS_SHARED = 500
_ESSAYS_SHARED = 200
# With more, the value has more than 64 bytes, and Redis does not keep the hash in its compact form.
_LAWS_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Found:
    """A batch that was read.

    :param version: the version in Redis of exactly this state; 0 where there is none.
    :param redis: the identity of the server.
    """

    state: BatchState
    version: int
    redis: str


class RedisStateStore:
    """The state store in Redis, in front of the archive if there is one.

    All facts of a batch are in one hash. A commit is one round trip: a script merges the facts in place.

    A summary names the version of the facts that it was made from, so an older summary is never used. Each law has its
    own summary, so that replicas with different definitions, which run together during a deployment, do not overwrite
    each other's summary.

    With an archive, a batch that may lack something is backfilled from the archive whenever it is read or written.
    Facts must be in the archive, or in the queue before it, before they are committed here. So Redis may lose data at
    any time.

    :param law: the law of summaries whose caller names no law.
    :param key_prefix: the prefix of every key.
    :param ttl_seconds: how long a batch is kept after its last write.
    :param backfill: reads the archive; None without an archive.
    :param max_essays: how many essays a batch may have; None for no limit.
    :param summary_made: gets a batch's id, each summary that `store_summary` should store later, and its law.
    :param changed: gets the id of each batch that was written.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        law: CompletionLaw,
        key_prefix: str,
        ttl_seconds: int,
        policy: CommitPolicy | None = None,
        backfill: ArchiveBackfill | None = None,
        max_essays: int | None = None,
        summary_made: Callable[[str, BatchSummary, CompletionLaw], None] = lambda *_: None,
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._roster = Roster(max_essays)
        # With an archive, the limit is checked before the archive gets the facts. Redis must take what the archive has.
        self._max_essays = max_essays or 0 if backfill is None else 0
        self._nodes = nodes
        self._batches = StoredBatches(nodes, key_prefix=key_prefix)
        self._dry_run = DryRun(key_prefix)
        self._law = law
        self._ttl_ms = ttl_seconds * 1000
        self._policy = policy or CommitPolicy()
        self._backfill = backfill
        self._summary_made = summary_made
        self._changed = changed
        # For each server the cause, and when.
        self._refusals: dict[str, tuple[str, float]] = {}
        self._scripts_refused_until = 0.0
        self._summaries = SummaryCache()
        self._flights: SingleFlight[BatchSummary] = SingleFlight()

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        """See `StateStore.commit`."""
        keys = self._batches.keys(batch_id)
        try:
            with as_corruption(keys):
                committed = await self._commit(batch_id, keys, delta)
        except StoreUnavailable as failure:
            if failure.answered:
                self._refusals[self._nodes.at(keys.facts).address] = failure.cause, anyio.current_time()
            raise
        if self._refusals:
            self._refusals.pop(self._nodes.at(keys.facts).address, None)
        self._changed(batch_id)
        return committed

    async def _commit(self, batch_id: str, keys: BatchKeys, delta: BatchState) -> Committed:
        stamp: str | None = ""
        # While the archive is unreachable, nothing can be backfilled, and the batch keeps the stamp that it has.
        if self._backfill and self._backfill.archive.reachable:
            stamp = self._backfill.required_stamp(self._nodes.at(keys.facts).identity)
        if stamp is None or anyio.current_time() < self._scripts_refused_until:
            return await self._commit_transaction(batch_id, keys, delta)
        try:
            merged = await self._merge(batch_id, keys, delta, stamp)
        except StoreUnavailable as failure:
            if not refuses_command(failure):
                raise
            # The gateway has logged it. Redis is asked again after a while, so that the problem stays known.
            self._scripts_refused_until = anyio.current_time() + _REFUSAL_SECONDS
            merged = False
        return Committed() if merged else await self._commit_transaction(batch_id, keys, delta)

    async def _merge(self, batch_id: str, keys: BatchKeys, delta: BatchState, stamp: str) -> bool:
        """Merge a delta by the script.

        :returns: False if the batch does not have the stamp; then nothing was merged.
        :raises TooManyEssays: the batch has no room for the new essays; nothing was merged.
        :raises BatchErased: nothing was merged.
        """
        calculation = merging(delta, ttl_ms=self._ttl_ms, stamp=stamp, max_essays=self._max_essays)
        arguments = await paced(calculation)
        node = self._nodes.at(keys.facts)
        send = node.call_multiplexed if len(arguments) <= _ARGUMENTS_SHARED else node.call

        async def attempt() -> Any:
            # When it is unknown whether an attempt succeeded, the next one merges the same facts: that changes nothing.
            await hit(FailPoint.BEFORE_EXEC, batch_id)
            try:
                [reply] = await send(MERGE.by_digest([keys.facts], *arguments))
            except ResponseError as error:
                if not MERGE.is_missing(error):
                    raise
                [reply] = await send(MERGE.whole([keys.facts], *arguments))
            await hit(FailPoint.AFTER_EXEC, batch_id)
            return reply

        def may_end_soon(error: BaseException) -> bool:
            # A few attempts may outlast a lost connection, or a Redis that is busy.
            if not isinstance(error, StoreUnavailable) or error.answered or error.late:
                return False
            return node.circuit == "closed"

        reply = await persistently(self._policy, attempt, may_end_soon)
        if isinstance(reply, int):
            self._roster.note_size(batch_id, reply)
            return True
        if reply[0] == INCOMPLETE:
            return False
        if reply[0] == ERASED:
            raise self._erased(batch_id, keys, reply[1])
        assert reply[0] == FULL  # noqa: S101 (the script has no other reply)
        self._roster.note_size(batch_id, reply[1])
        await self.ensure_room(batch_id, delta.first_seen_us)
        # Meanwhile the batch has room, because it has expired.
        return await self._merge(batch_id, keys, delta, stamp)

    async def _commit_transaction(self, batch_id: str, keys: BatchKeys, delta: BatchState) -> Committed:
        """Commit with WATCH, MULTI and EXEC, and backfill the batch if it may lack something."""

        async def optimistically() -> None:
            found = await self._transacted(batch_id, keys, delta)
            self._roster.note_size(batch_id, len(found.state.first_seen_us))

        async def by_script() -> None:
            # The batch keeps the stamp that it has, so the next reader backfills it.
            await self._merge(batch_id, keys, delta, "")

        return await commit_with(self._policy, optimistically, by_script)

    async def _transacted(self, batch_id: str, keys: BatchKeys, delta: BatchState | None) -> _Found:
        """See `_transact`. A tombstone that only the archive has is put into Redis, which may have lost it."""
        try:
            return await self._transact(batch_id, keys, delta)
        except BatchErased as erased:
            if not erased.in_redis:
                await self.erase(batch_id, erased.tombstone)
            raise

    async def _transact(self, batch_id: str, keys: BatchKeys, delta: BatchState | None) -> _Found:
        """Backfill a batch, merge a delta, and write what changed.

        :param delta: None to read the batch only.
        :raises CommitConflict: another writer changed the batch meanwhile; nothing was written.
        :raises BatchErased: nothing was written.
        """
        async with self._nodes.at(keys.facts).session() as session:
            commands = (*watch(keys), ("PTTL", keys.facts), ("TIME",))
            _, *replies, remaining_ms, [seconds, microseconds] = await session.call(*commands)
            stored = await paced(decoding(keys, replies, session.identity), session.paused)
            if stored.erased:
                await session.call(("UNWATCH",))
                raise BatchErased(batch_id, stored.erased, in_redis=True)
            state = await paced(decoding_state(keys, stored), session.paused)
            changed = await paced(state.copying(), session.paused) if stored.former else BatchState()
            stamp = stored.stamp
            if self._backfill is None:
                if delta is not None:
                    self._roster.ensure_room_among(state.first_seen_us, delta.first_seen_us)
            elif delta is None:
                with session.paused():
                    added, stamp = await self._backfill.complete(batch_id, state, stored.stamp, stored.redis)
                await paced(changed.merging(added), session.paused)
            elif not self._backfill.is_complete(stamp, stored.redis):
                # If the archive is away, the batch keeps its old stamp, which shows that the archive may have more of
                # it.
                with session.paused():
                    backfilled = await self._backfill.backfill(batch_id, state, stored.redis)
                if backfilled:
                    stamp = backfilled.stamp
                    added = await paced(state.merging(backfilled.state), session.paused)
                    await paced(changed.merging(added), session.paused)
            if stored.former and stamp is None:
                stamp = stored.stamp
            if delta is not None:
                added = await paced(state.merging(delta), session.paused)
                await paced(changed.merging(added), session.paused)
            if stored.version is None:
                # Not from 1: a batch that expires and comes again must not repeat a version.
                version = int(seconds) * 1_000_000 + int(microseconds)
            else:
                version = stored.version + (not changed.empty)
            await hit(FailPoint.BEFORE_EXEC, batch_id)
            writes: list[Any] = []
            if not state.empty and not (changed.empty and stamp in (None, stored.stamp)):
                writes = await paced(writing(keys, stored, state, changed, version, stamp), session.paused)
                if stored.former:
                    writes.append(("DEL", *keys.former))
            if delta is not None or remaining_ms <= 0:
                remaining_ms = self._ttl_ms  # a read does not extend the time to live
            if writes or delta is not None:
                writes.append(("PEXPIRE", keys.facts, remaining_ms))
            # Without a write, the empty transaction checks that nothing has changed since the batch was read.
            replies = await session.call(("MULTI",), *writes, ("EXEC",))
            await hit(FailPoint.AFTER_EXEC, batch_id)
        if replies[-1] is None:
            raise CommitConflict(batch_id)
        return _Found(state, 0 if state.empty else version, stored.redis)

    async def ensure_room(self, batch_id: str, essays: Collection[str]) -> None:
        """See `StateStore.ensure_room`."""
        if self._roster.has_room(batch_id, len(essays)):
            return
        keys = self._batches.keys(batch_id)
        with as_corruption(keys):
            node = self._nodes.at(keys.facts)
            [(count, erased)] = await node.call_multiplexed(("HMGET", keys.facts, COUNT_FIELD, ERASED_FIELD))
            if erased is not None:
                raise self._erased(batch_id, keys, erased)
            size = _number(keys, count or b"0")
            self._roster.note_size(batch_id, size)
            if self._roster.has_room(batch_id, len(essays)):
                return
            ids = list(essays)
            # Not on the shared connection, because the reply may be large.
            [rows] = await node.call(("HMGET", keys.facts, *map(essay_field, ids)))
        new_essays = (essay for essay, row in zip(ids, rows, strict=True) if row is None)
        self._roster.ensure_room(size, new_essays)

    async def summary(self, batch_id: str, law: CompletionLaw | None = None) -> BatchSummary:
        """See `StateStore.summary`."""
        law = law or self._law
        keys = self._batches.keys(batch_id)
        head = ("HMGET", keys.facts, VERSION_FIELD, STAMP_FIELD, COUNT_FIELD, ERASED_FIELD)
        node = self._nodes.at(keys.facts)
        kept = self._summaries.get(batch_id, law.fingerprint)
        try:
            if kept:
                replies = await node.call_multiplexed(head)
            else:
                stored = ("GET", keys.summary(law.fingerprint))
                # Each command has one key, so that it finds this key while the slot moves in a cluster. The facts are
                # last, because the sender of the last reply counts.
                exist = [("EXISTS", key) for key in keys.former]
                replies = await node.call_multiplexed(*exist, stored, head)
        except ResponseError:
            # BCS did not write one of these keys. A summary is made again; facts are reported as corrupt.
            return await self._made_summary(batch_id, keys, law, size=0, former=True)
        (version, stamp, count, erased), redis = replies[-1], replies.peer.identity
        if erased is not None:
            raise self._erased(batch_id, keys, erased)
        # A batch whose summary this process has kept was taken over before.
        former = not kept and any(replies[: len(keys.former)])
        if version is None:
            if self._backfill is None and not former:
                return BatchSummary()
        else:
            if kept and not (kept.redis == redis and kept.version == version):
                kept = None
            elif not kept and replies[-2] is not None:
                kept = self._stored_summary(batch_id, keys, law, replies[-2], version, redis)
            if kept and self._is_enough(kept.summary, stamp, redis):
                if not kept.stored:
                    # The batch is asked again before it changes, so other processes may be asked, too.
                    self._store_later(batch_id, kept, law)
                return kept.summary
        make = partial(self._made_summary, batch_id, keys, law, size=_number(keys, count or b"0"), former=former)
        return await self._flights.do((batch_id, law.fingerprint), make)

    def _stored_summary(
        self, batch_id: str, keys: BatchKeys, law: CompletionLaw, text: bytes, version: bytes, redis: str
    ) -> KeptSummary | None:
        try:
            summary = decode_summary(keys.stem, text)
        except StoreCorrupted as error:
            log.warning("summary_unreadable", batch_id=batch_id, problem=str(error))
            return None
        if str(summary.version).encode() != version:
            return None
        kept = KeptSummary(redis, version, summary, law=law.fingerprint, stored=True)
        self._summaries.put(batch_id, kept)
        return kept

    def _store_later(self, batch_id: str, kept: KeptSummary, law: CompletionLaw) -> None:
        kept.stored = True
        self._summary_made(batch_id, kept.summary, law)

    def _is_enough(self, summary: BatchSummary, stamp: bytes | None, redis: str) -> bool:
        """True if the copy in Redis is complete, or is enough while the archive is unreachable.

        :raises StoreUnavailable: the archive is unreachable, and the copy may lack facts.
        """
        if self._backfill is None:
            return True
        text = None if stamp is None else stamp.decode(errors="replace")
        if self._backfill.is_complete(text, redis):
            return True
        if self._backfill.archive.reachable:
            return False
        self._backfill.ensure_same_redis(text, redis)
        self._backfill.require_registered(summary.registered)
        return True

    async def _made_summary(
        self, batch_id: str, keys: BatchKeys, law: CompletionLaw, *, size: int, former: bool
    ) -> BatchSummary:
        """Make the summary from the facts.

        :param size: how many essays the batch has, about.
        :param former: whether the former layout may have facts of the batch.
        """
        with as_corruption(keys):
            # The size of a batch in the former layout is unknown.
            shared = size <= _ESSAYS_SHARED and not former
            stored = await self._batches.read(batch_id, shared=shared, former=former)
            if stored.former or not (self._backfill is None or self._backfill.is_complete(stored.stamp, stored.redis)):
                found = await self._completed(batch_id, keys)
                redis, summary = found.redis, await paced(summarizing(found.state, law, found.version))
            else:
                version = stored.version or 0
                counted = await paced(tallying(stored.registers, stored.columns, law, version))
                if counted is None:
                    state = await paced(decoding_state(keys, stored))
                    counted = await paced(summarizing(state, law, version))
                redis, summary = stored.redis, counted
        if summary.version:
            kept = KeptSummary(redis, str(summary.version).encode(), summary, law=law.fingerprint)
            self._summaries.put(batch_id, kept)
            # To store the summary of a small batch takes longer than to make it. Where the server has no identity, this
            # process does not keep the summary.
            if summary.known > _ESSAYS_SHARED or not redis:
                self._store_later(batch_id, kept, law)
        return summary

    async def _completed(self, batch_id: str, keys: BatchKeys) -> _Found:
        """Read a batch, and write what it lacks, unless other writers win every attempt."""
        found = list[_Found]()

        async def optimistically() -> None:
            found.append(await self._transacted(batch_id, keys, None))

        async def without_storing() -> None:
            found.append(_Found(await self.state(batch_id), 0, ""))

        await commit_with(self._policy, optimistically, without_storing)
        return found[-1]

    async def store_summary(self, batch_id: str, summary: BatchSummary, law: CompletionLaw | None = None) -> Committed:
        """See `StateStore.store_summary`."""
        fingerprint = (law or self._law).fingerprint
        keys = self._batches.keys(batch_id)

        async def optimistically() -> None:
            async with self._nodes.at(keys.facts).session() as session:
                watched = await session.call(
                    ("WATCH", keys.facts),
                    ("HMGET", keys.facts, VERSION_FIELD, LAWS_FIELD, ERASED_FIELD),
                    ("PTTL", keys.facts),
                )
                _, (version, laws, erased), remaining_ms = watched
                if (
                    erased is not None
                    or version != str(summary.version).encode()
                    or remaining_ms <= 0
                    or not self._may_be_of(session.identity, batch_id, summary, fingerprint)
                ):
                    await session.call(("UNWATCH",))
                    return  # a newer summary will be made when it is needed
                store: list[Command] = [("SET", keys.summary(fingerprint), encode_summary(summary), "PX", remaining_ms)]
                known = (laws or b"").decode().split(",") if laws else []
                if fingerprint not in known:
                    store.append(("HSET", keys.facts, LAWS_FIELD, ",".join([*known, fingerprint][-_LAWS_NAMED:])))
                if (await session.call(("MULTI",), *store, ("EXEC",)))[-1] is None:
                    raise CommitConflict(batch_id)

        async def without_storing() -> None:
            """The next process that needs the summary makes it again."""

        with as_corruption(keys):
            return await commit_with(self._policy, optimistically, without_storing)

    def _may_be_of(self, redis: str, batch_id: str, summary: BatchSummary, law: str) -> bool:
        """False if a summary was not made from the batch on this server, where its version may have other facts."""
        kept = self._summaries.get(batch_id, law)
        return not redis or (kept is not None and kept.redis == redis and kept.summary == summary)

    async def state(self, batch_id: str) -> BatchState:
        """See `StateStore.state`."""
        copy = await self._batches.copy(batch_id)
        if self._backfill:
            await self._backfill.complete(batch_id, copy.state, copy.stamp, copy.redis)
        return copy.state

    async def partial_state(self, batch_id: str) -> BatchState:
        """See `StateStore.partial_state`."""
        return (await self._batches.copy(batch_id)).state

    async def is_erased(self, batch_id: str) -> bool:
        """See `StateStore.is_erased`."""
        keys = self._batches.keys(batch_id)
        with as_corruption(keys):
            [erased] = await self._nodes.at(keys.facts).call_multiplexed(("HGET", keys.facts, ERASED_FIELD))
        return erased is not None

    async def erasable(self, batch_id: str) -> ErasedCopy:
        """See `StateStore.erasable`."""
        keys = self._batches.keys(batch_id)
        with as_corruption(keys):
            copy, summaries = await look_in_redis(self._nodes, keys, law=self._law.fingerprint)
            [*stored] = await self._nodes.at(keys.facts).call(*(("EXISTS", key) for key in summaries))
        return replace(copy, summaries=sum(map(int, stored)))

    async def erase(self, batch_id: str, tombstone: Tombstone) -> ErasedCopy:
        """See `StateStore.erase`."""
        keys = self._batches.keys(batch_id)
        with as_corruption(keys):
            erased = await erase_in_redis(self._nodes, keys, tombstone, law=self._law.fingerprint)
        self._summaries.forget(batch_id)
        return erased

    def _erased(self, batch_id: str, keys: BatchKeys, tombstone: bytes) -> BatchErased:
        self._summaries.forget(batch_id)
        try:
            return BatchErased(batch_id, decode_tombstone(tombstone), in_redis=True)
        except ValueError as error:
            raise StoreCorrupted(keys.stem, str(error)) from None

    def ensure_reachable(self) -> None:
        """See `StateStore.ensure_reachable`."""
        self._nodes.ensure_reachable()

    def ensure_writable(self, batch_id: str) -> None:
        """See `StateStore.ensure_writable`."""
        node = self._nodes.at(self._batches.keys(batch_id).facts)
        node.ensure_reachable()
        cause, refused_at = self._refusals.get(node.address, ("", 0.0))
        if cause and anyio.current_time() < refused_at + _REFUSAL_SECONDS:
            raise StoreUnavailable("redis", cause, answered=True)

    def server_of(self, batch_id: str) -> str:
        """See `StateStore.server_of`."""
        return self._nodes.at(self._batches.keys(batch_id).facts).address

    async def time_us(self, batch_id: str) -> int:
        """See `StateStore.time_us`."""
        [[seconds, microseconds]] = await self._nodes.at(self._batches.keys(batch_id).facts).call(("TIME",))
        return int(seconds) * 1_000_000 + int(microseconds)

    async def ping(self) -> None:
        """See `StateStore.ping`."""
        await self._nodes.ping(self._dry_run)

    @property
    def problem(self) -> str:
        """See `StateStore.problem`."""
        return self._nodes.problem

    @property
    def partly_reachable(self) -> bool:
        """See `StateStore.partly_reachable`."""
        return self._nodes.partly_reachable


def _number(keys: BatchKeys, text: bytes) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise StoreCorrupted(keys.stem, str(error)) from None
