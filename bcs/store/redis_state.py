"""The state of batches in Redis: WATCH, read, merge, MULTI/EXEC; and a summary that makes reading it cheap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from redis.exceptions import ResponseError

from bcs.domain.errors import CommitConflict, StoreCorrupted
from bcs.domain.state import BatchState
from bcs.domain.verdicts import BatchSummary, summarize
from bcs.failpoints import FailPoint, Reach, pass_by
from bcs.store.base import Committed
from bcs.store.codec import (
    BATCH_MARK_PREFIX,
    EXPECTED_FIELD,
    SLOT_PREFIX,
    VERSION_FIELD,
    BatchKeys,
    decode_state,
    decode_summary,
    encode_essay,
    encode_essay_mark,
    encode_expected,
    encode_joined,
    encode_mark,
    encode_summary,
    slots_in,
)
from bcs.store.committing import CommitPolicy, commit_with
from bcs.store.merge_script import MERGE_SCRIPT
from bcs.store.multiplexer import Command
from bcs.store.redis_gateway import RedisGateway, RedisSession


class RedisStateStore:
    """The state store in Redis.

    All keys of a batch are written and expire together, and are read in one transaction: a batch is seen whole or not
    at all.

    :param key_prefix: stands before every key.
    :param ttl_seconds: how long a batch is kept after its last write.
    :param reach: for chaos tests.
    """

    def __init__(
        self,
        gateway: RedisGateway,
        *,
        key_prefix: str,
        ttl_seconds: int,
        policy: CommitPolicy | None = None,
        reach: Reach = pass_by,
    ) -> None:
        self._gateway = gateway
        self._key_prefix = key_prefix
        self._ttl_ms = ttl_seconds * 1000
        self._policy = policy or CommitPolicy()
        self._reach = reach

    async def commit(self, batch_id: str, delta: BatchState) -> Committed:
        """See `StateStore.commit`."""
        keys = BatchKeys(self._key_prefix, batch_id)

        async def optimistically() -> None:
            async with self._gateway.session() as session:
                watched = await session.call(*self._watch(keys))
                state, version, slots = self._decode(keys, watched[1:])
                changed = state.absorb(delta)
                summary = summarize(state, version + 1)
                writes = [
                    *_writes(keys, slots, state, changed, summary.version),
                    # A transaction runs at one instant, so all keys of the batch expire at the same one.
                    ("SET", keys.summary, encode_summary(summary), "PX", self._ttl_ms),
                    ("PEXPIRE", keys.meta, self._ttl_ms),
                    ("PEXPIRE", keys.essays, self._ttl_ms),
                ]
                await self._reach(FailPoint.BEFORE_EXEC, batch_id)
                written = await self._execute(session, writes)
                await self._reach(FailPoint.AFTER_EXEC, batch_id)
            if not written:
                raise CommitConflict(batch_id)

        async def register_by_register() -> None:
            # Each register is merged where it lies, so nothing is overwritten unread; the summary, which would need
            # them all, is dropped, and the next reader makes it anew.
            await self._gateway.call(self._merge_command(keys, delta))

        with _corruption_named(keys):
            return await commit_with(self._policy, optimistically, register_by_register)

    async def summary(self, batch_id: str) -> BatchSummary:
        """See `StateStore.summary`."""
        keys = BatchKeys(self._key_prefix, batch_id)
        try:
            [stored] = await self._gateway.share(("GET", keys.summary))
        except ResponseError as error:
            raise StoreCorrupted(keys.stem, str(error)) from error
        if stored is not None:
            return decode_summary(keys.summary, stored)
        with _corruption_named(keys):
            state, version, _ = await self._snapshot(keys)
            if not state.empty:
                await self._restore_summary(keys)
        return summarize(state, version)

    async def state(self, batch_id: str) -> BatchState:
        """See `StateStore.state`."""
        state, _ = await self.versioned(batch_id)
        return state

    async def versioned(self, batch_id: str) -> tuple[BatchState, int]:
        """A batch's state and its version, of one instant. Nothing is written, not even a missing summary.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        keys = BatchKeys(self._key_prefix, batch_id)
        with _corruption_named(keys):
            state, version, _ = await self._snapshot(keys)
        return state, version

    def ensure_reachable(self) -> None:
        """See `StateStore.ensure_reachable`."""
        self._gateway.ensure_reachable()

    async def ping(self) -> None:
        """See `StateStore.ping`."""
        await self._gateway.ping()

    async def _restore_summary(self, keys: BatchKeys) -> None:
        """Store a missing summary anew, unless another writer comes in between."""
        async with self._gateway.session() as session:
            *watched, remaining_ms = await session.call(*self._watch(keys), ("PTTL", keys.meta))
            state, version, _ = self._decode(keys, watched[1:])
            if remaining_ms <= 0:
                await session.call(("UNWATCH",))  # the batch has just expired
                return
            # It must not outlive the facts that it sums up.
            stored = encode_summary(summarize(state, version))
            await self._execute(session, [("SET", keys.summary, stored, "PX", remaining_ms)])

    async def _snapshot(self, keys: BatchKeys) -> tuple[BatchState, int, list[str]]:
        # One transaction, since keys that expire between two reads would show half a batch.
        replies = await self._gateway.call(("MULTI",), *_reads(keys), ("EXEC",))
        return self._decode(keys, replies[-1])

    def _watch(self, keys: BatchKeys) -> list[Command]:
        # These reads can show half a batch, if it expires between them. Then EXEC fails: to expire counts as a change.
        return [("WATCH", *keys.all), *_reads(keys)]

    async def _execute(self, session: RedisSession, writes: Sequence[Command]) -> bool:
        replies = await session.call(("MULTI",), *writes, ("EXEC",))
        return replies[-1] is not None

    def _decode(self, keys: BatchKeys, replies: Sequence[Any]) -> tuple[BatchState, int, list[str]]:
        try:
            texts = [item.decode() for item in replies[0]]
            meta = dict(zip(texts[::2], texts[1::2], strict=True))
            slots, version = slots_in(meta), int(meta.get(VERSION_FIELD, 0))
        except ValueError as error:
            raise StoreCorrupted(keys.meta, str(error)) from None
        return decode_state(keys, meta, slots, replies[1]), version, slots

    def _merge_command(self, keys: BatchKeys, delta: BatchState) -> Command:
        registers: list[Command] = []
        if delta.expected:
            registers.append(("newest", EXPECTED_FIELD, "", encode_expected(delta.expected)))
        registers += [
            ("batch mark", f"{BATCH_MARK_PREFIX}{phase}", "", encode_mark(mark))
            for phase, mark in delta.batch_marks.items()
        ]
        registers += [("joined", essay, "", encode_joined(since)) for essay, since in delta.known_since_us.items()]
        registers += [
            ("mark", essay, phase, encode_essay_mark(mark))
            for phase, marks in delta.essay_marks.items()
            for essay, mark in marks.items()
        ]
        return ("EVAL", MERGE_SCRIPT, len(keys.all), *keys.all, self._ttl_ms, *chain.from_iterable(registers))


@contextmanager
def _corruption_named(keys: BatchKeys) -> Iterator[None]:
    """Redis refuses our commands for good only where a key holds something that we did not put there."""
    try:
        yield
    except ResponseError as error:
        raise StoreCorrupted(keys.stem, str(error)) from error


def _reads(keys: BatchKeys) -> list[Command]:
    return [("HGETALL", keys.meta), ("HGETALL", keys.essays)]


def _writes(keys: BatchKeys, slots: list[str], state: BatchState, changed: BatchState, version: int) -> list[Command]:
    fields = {VERSION_FIELD: str(version)}
    fields |= {f"{BATCH_MARK_PREFIX}{phase}": encode_mark(mark) for phase, mark in changed.batch_marks.items()}
    if changed.expected:
        fields[EXPECTED_FIELD] = encode_expected(changed.expected)
    slots = list(slots)
    for phase in sorted(changed.essay_marks.keys() - set(slots)):
        fields[f"{SLOT_PREFIX}{phase}"] = str(len(slots))
        slots.append(phase)
    touched = changed.known_since_us.keys() | set(chain.from_iterable(changed.essay_marks.values()))
    records = {essay: encode_essay(state, essay, slots) for essay in touched}
    hashes: list[tuple[str, Mapping[str, str | bytes]]] = [(keys.meta, fields), (keys.essays, records)]
    return [("HSET", key, *chain.from_iterable(entries.items())) for key, entries in hashes if entries]
