"""A queue in a Redis stream. Every replica drains it, and takes over the unacked entries of a dead replica."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from typing import Any, Generic, TypeVar

import structlog
from anyio.lowlevel import checkpoint
from redis.exceptions import ResponseError

from bcs.errors import StoreUnavailable
from bcs.storage.ports import Leased, Waiting
from bcs.storage.redis.commands import Command, packed_one
from bcs.storage.redis.errors import GROUP_EXISTS, NO_GROUP, code_of
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.queue_scripts import ADD, LEASE, MOVE, RECOVER, WAITING

T = TypeVar("T")

log = structlog.stdlib.get_logger("bcs.queue")

_LARGE_BYTES = 64 * 1024
# A FLUSHALL between the creation of a group and its use is rare. After several in a row the call fails.
_GROUP_ATTEMPTS = 5
# The identities of the newest appended entries are kept: at least so many, and at most twice as many, in 4 MB.
_KEPT_IDENTITIES = 50_000
# The same for entries that were requeued or parked. Fewer are enough, because these are retried at once.
_KEPT_MOVES = 2_000
# A script blocks all of Redis, so one call moves only so many entries.
_MOVED_AT_A_TIME = 20
_IDENTITY_BYTES = 16
# The leased entries have to arrive within the deadline of a round trip.
_REPLY_BYTES = 4 * 1024 * 1024
# Larger entries are parked unread.
_LARGEST_ENTRY_BYTES = 64 * 1024 * 1024
# Decoding more without a pause would block the event loop.
_DECODED_AT_A_TIME_BYTES = 256 * 1024

Fields = list[str | bytes]


class RedisQueue(ABC, Generic[T]):
    """A queue of items that must reach another system. An entry stays until it is acked, also when processes die.

    :param stream: the stream's key.
    :param parked: the key of the stream for items that the other system will never accept.
    :param group: the stream's consumer group.
    :param consumer: this process's name among the replicas.
    :param limit: how many items the queue holds at most. This is checked against the last known length, so that
        appending costs one round trip; replicas that append at the same time may exceed the limit.
    """

    def __init__(self, nodes: Nodes, *, stream: str, parked: str, group: str, consumer: str, limit: int) -> None:
        self._nodes = nodes
        self._stream = stream
        self._parked = parked
        self._waiting = f"{stream}:waiting"
        self._group = group
        self._consumer = consumer
        self._limit = limit
        self._length: int | None = None  # None before the first reply with a length
        self._cursor = "0-0"
        self._in_doubt = False

    @abstractmethod
    def _fields(self, item: T) -> Fields:
        """The fields and values of an item's entry."""

    @abstractmethod
    def _item(self, fields: dict[bytes, bytes]) -> T:
        """The item of an entry's fields.

        :raises KeyError, ValueError, TypeError: `_fields` did not make these fields.
        """

    def _since_ms(self, item: T) -> int | None:
        """Since when an item has waited, in milliseconds since 1970 UTC; None where its wait starts now."""
        return None

    @abstractmethod
    def _full_error(self, limit: int) -> Exception:
        """The error to raise when the queue is full."""

    async def append(self, items: Sequence[T], *commands: Command) -> None:
        """Append items, all or none; they are durable when this returns.

        If it is unknown whether an append succeeded, repeat it with the same items: no item is added twice.

        :param commands: more commands for the same transaction.
        :raises StoreUnavailable: whether the items were appended is unknown.
        """
        if not items:
            return
        if (self._length or 0) + len(items) > self._limit and await self.backlog() + len(items) > self._limit:
            raise self._full_error(self._limit)
        entries, size_bytes = _identified([self._fields(item) for item in items], map(self._since_ms, items))
        keys, arguments = self._addition(self._stream, "taken", _KEPT_IDENTITIES, entries)
        # A large command would delay other callers on the shared connection.
        node = self._nodes.at(self._stream)
        send = node.call if size_bytes > _LARGE_BYTES else node.call_multiplexed
        try:
            # In a transaction the script is sent whole, because the other commands would be carried out without it.
            if commands or not await self._add_by_digest(send, keys, arguments):
                *_, replies = await send(("MULTI",), *commands, ADD.whole(keys, *arguments), ("EXEC",))
                self._length = replies[-1]
        except ResponseError as error:
            raise self._no_stream(error) from error

    async def _add_by_digest(
        self,
        send: Callable[[Command], Awaitable[list[Any]]],
        keys: Sequence[str],
        arguments: Iterable[str | bytes | int],
    ) -> bool:
        """Add entries by the short form of the script; False if Redis lacks the script, or refuses the short form."""
        try:
            [self._length] = await send(ADD.by_digest(keys, *arguments))
        except ResponseError as error:
            if not ADD.is_missing(error):
                raise
            return False
        except StoreUnavailable as failure:
            # The user may have the right to EVAL, and not to EVALSHA.
            if not failure.answered:
                raise
            return False
        return True

    def additions(self, items: Sequence[T]) -> list[Command]:
        """The commands that append items, for another queue's transaction."""
        return [("XADD", self._stream, "*", *self._fields(item)) for item in items]

    async def lease(self, limit: int) -> list[Leased[T]]:
        """Lease entries that no replica has leased yet, oldest first, and at least one if there is one.

        Where the reply to the last call was lost, the entries of that call come first.

        :param limit: how many entries at most; fewer where they are large.
        """
        if self._in_doubt and (again := await self.resume(limit)):
            return again
        # Until the reply arrives, entries may be leased to this process that it does not have.
        self._in_doubt = True
        leased = await self._leased(await self._take(limit, LEASE, ">"))
        self._in_doubt = False
        return leased

    async def resume(self, limit: int) -> list[Leased[T]]:
        """Lease again the entries that this process has leased and not acked, after a crash of the actor."""
        after = "0"
        while entries := await self._take(limit, LEASE, after):
            leased = await self._leased(entries)
            if leased:
                return leased
            after = entries[-1][0].decode()  # another replica has deleted all of these entries
        return []

    async def recover(self, idle_seconds: float, limit: int) -> list[Leased[T]]:
        """Take over entries whose lease is so old that its holder must have died."""
        in_doubt, self._in_doubt = self._in_doubt, True
        leased = await self._leased(await self._take(limit, RECOVER, int(idle_seconds * 1000), self._cursor))
        self._in_doubt = in_doubt
        return leased

    async def ack(self, entry_ids: Sequence[str]) -> None:
        """Delete entries whose items have reached the other system."""
        if entry_ids:
            *_, self._length = await self._transaction(*self._removal(entry_ids), ("XLEN", self._stream))

    async def requeue(self, leased: Sequence[Leased[T]]) -> None:
        """Move leased entries back to the end of the queue."""
        for start in range(0, len(leased), _MOVED_AT_A_TIME):
            entries = {entry.entry_id: entry for entry in leased[start : start + _MOVED_AT_A_TIME]}
            missing = await self._move(self._stream, list(entries))
            # Redis may have lost these entries by a FLUSHALL, so the leased copies are added again.
            lost = [entries[entry_id] for entry_id in missing]
            await self._add_again(
                self._stream, [(one.entry_id, self._waits_since_ms(one), self._fields(one.message)) for one in lost]
            )

    async def park(self, leased: Leased[T], problem: str) -> None:
        """Move an entry that the other system will never accept to the parked stream, so that it blocks no other."""
        await self._move_to_parked(leased.entry_id, self._fields(leased.message), problem)

    async def _move_to_parked(self, entry_id: str, fields: Fields, problem: str) -> None:
        missing = await self._move(self._parked, [entry_id], "problem", problem)
        await self._add_again(self._parked, [(entry_id, None, [*fields, "problem", problem]) for entry_id in missing])

    async def _move(self, target: str, entry_ids: Sequence[str], *more: str) -> list[str]:
        """Move entries to the end of a stream.

        :param more: additional fields and values for each entry.
        :returns: the ids of missing entries.
        """
        keys = (self._stream, target, *self._memory("moved"), self._waiting)
        with self._wrong_type_as_outage():
            [missing] = await self._nodes.at(self._stream).call(
                ("EVAL", MOVE, len(keys), *keys, _KEPT_MOVES, self._group, len(more), *more, *entry_ids)
            )
        return [entry_id.decode() for entry_id in missing]

    def _waits_since_ms(self, leased: Leased[T]) -> int:
        since_ms = self._since_ms(leased.message)
        return int(leased.entry_id.partition("-")[0]) if since_ms is None else since_ms

    async def _add_again(self, target: str, entries: Sequence[tuple[str, int | None, Fields]]) -> None:
        if entries:
            keys, arguments = self._addition(target, "moved", _KEPT_MOVES, entries)
            with self._wrong_type_as_outage():
                await self._nodes.at(self._stream).call(ADD.whole(keys, *arguments))

    def _addition(
        self, target: str, memory: str, kept: int, entries: Iterable[tuple[str | bytes, int | None, Fields]]
    ) -> tuple[tuple[str, ...], list[str | bytes | int]]:
        """The keys and arguments of `ADD` for entries with their identities."""
        parts = chain.from_iterable(
            (identity, "" if since_ms is None else since_ms, len(fields), *fields)
            for identity, since_ms, fields in entries
        )
        return (target, *self._memory(memory), self._waiting), [kept, *parts]

    def _memory(self, name: str) -> tuple[str, str]:
        return f"{self._stream}:{name}", f"{self._stream}:{name}:before"

    async def backlog(self) -> int:
        """How many entries wait, including leased ones."""
        [length] = await self._transaction(("XLEN", self._stream))
        self._length = int(length)
        return self._length

    async def measure(self) -> Waiting:
        """How many entries wait, and how long the oldest has waited."""
        with self._wrong_type_as_outage():
            [reply] = await self._nodes.at(self._stream).call(("EVAL", WAITING, 2, self._stream, self._waiting))
        length, since_ms, now_ms = map(int, reply)
        self._length = length
        return Waiting(length, max(0, now_ms - since_ms) / 1000)

    async def _transaction(self, *commands: Command) -> list[Any]:
        with self._wrong_type_as_outage():
            replies = await self._nodes.at(self._stream).call(("MULTI",), *commands, ("EXEC",))
        results: list[Any] = replies[-1]
        return results

    @contextmanager
    def _wrong_type_as_outage(self) -> Iterator[None]:
        try:
            yield
        except ResponseError as error:
            raise self._no_stream(error) from error

    def _no_stream(self, error: ResponseError) -> StoreUnavailable:
        # An outage, because the items are valid: no message may become a dead letter for this. An operator has to
        # delete the key.
        return StoreUnavailable("redis", f"{self._stream} or {self._parked} is not a stream ({error})", answered=True)

    async def _take(self, limit: int, script: str, *where: str | int) -> list[Any]:
        keys = (self._stream, self._parked)
        about = (self._group, self._consumer, limit, _REPLY_BYTES, _LARGEST_ENTRY_BYTES)
        entries, set_aside, *cursor = await self._call_in_group(("EVAL", script, len(keys), *keys, *about, *where))
        if cursor:
            self._cursor = cursor[0].decode()
        for entry_id in set_aside:
            log.error("queue_entry_parked", stream=self._stream, entry_id=entry_id.decode(), problem="too large")
        taken: list[Any] = entries
        return taken

    async def _call_in_group(self, command: Command) -> Any:
        """Call, and first create the consumer group where it is missing, at the start or after a FLUSHALL."""
        for _ in range(_GROUP_ATTEMPTS):
            with self._wrong_type_as_outage():
                try:
                    [reply] = await self._nodes.at(self._stream).call(command)
                except ResponseError as error:
                    if code_of(error) != NO_GROUP:
                        raise
                    await self._create_group()
                else:
                    return reply
        raise StoreUnavailable("redis", "the consumer group disappears as soon as it is created")

    async def _create_group(self) -> None:
        try:
            # From the beginning of the stream, because entries may be older than the group.
            await self._nodes.at(self._stream).call(("XGROUP", "CREATE", self._stream, self._group, "0", "MKSTREAM"))
        except ResponseError as error:
            if code_of(error) != GROUP_EXISTS:  # else another replica was first
                raise

    async def _leased(self, entries: Sequence[Any]) -> list[Leased[T]]:
        leased: list[Leased[T]] = []
        decoded_bytes = 0
        for entry in entries:
            raw_id, fields = entry or (b"", None)
            if not fields:
                continue  # deleted while it was leased; Redis 6.2 returns a null in its place
            decoded_bytes += sum(map(len, fields))
            if decoded_bytes > _DECODED_AT_A_TIME_BYTES:
                decoded_bytes = 0
                await checkpoint()
            entry_id = raw_id.decode()
            try:
                item = self._item(dict(zip(fields[::2], fields[1::2], strict=True)))
            except (KeyError, ValueError, TypeError) as error:
                # From another release or another program: the entry must not be lost, and must not come back for ever.
                await self._move_to_parked(entry_id, fields, f"not readable: {error!r}")
                log.error("queue_entry_parked", stream=self._stream, entry_id=entry_id, problem=repr(error))  # noqa: TRY400
            else:
                leased.append(Leased(entry_id, item))
        return leased

    def _removal(self, entry_ids: Sequence[str]) -> list[Command]:
        return [("XACK", self._stream, self._group, *entry_ids), ("XDEL", self._stream, *entry_ids)]


def _identified(
    entries: Sequence[Fields], since_ms: Iterable[int | None]
) -> tuple[list[tuple[bytes, int | None, Fields]], int]:
    """Entries with identities, and their size in bytes.

    The same content has the same identity, whenever it started to wait.
    """
    found: dict[bytes, int] = {}
    identified: list[tuple[bytes, int | None, Fields]] = []
    size_bytes = 0
    for fields, since in zip(entries, since_ms, strict=True):
        content = packed_one(tuple(fields))
        size_bytes += len(content)
        identity = blake2b(content, digest_size=_IDENTITY_BYTES).digest()
        # Two equal entries in one call are two entries, so the second gets its own identity.
        earlier = found.get(identity, 0)
        identified.append((identity + b"%d" % earlier if earlier else identity, since, fields))
        found[identity] = earlier + 1
    return identified, size_bytes
