"""A queue in a Redis stream: every replica drains it, and takes over what a dead one had in hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from typing import Any, Generic, TypeVar

import structlog
from anyio.lowlevel import checkpoint
from redis.exceptions import ResponseError

from bcs.errors import StoreUnavailable
from bcs.storage.ports import Leased, Waiting
from bcs.storage.redis.commands import Command, packed
from bcs.storage.redis.errors import GROUP_EXISTS, NO_GROUP, code_of
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.queue_scripts import ADD, LEASE, MOVE, RECOVER, WAITING

T = TypeVar("T")

log = structlog.stdlib.get_logger("bcs.queue")

_LARGE_BYTES = 64 * 1024
# A FLUSHALL between the creation of a group and its use is rare; several in a row are no accident.
_GROUP_ATTEMPTS = 5
# Entries that were appended lately are remembered: at least so many entries, and at most twice as many, in 4 MB.
_REMEMBERED = 50_000
# The same for entries that were given back or set aside. Their retry follows at once.
_REMEMBERED_MOVES = 2_000
# A script holds up all of Redis, so it moves only so much at a time.
_MOVED_AT_A_TIME = 20
_IDENTITY_BYTES = 16
# What is leased at a time has to come within the deadline of a round trip.
_REPLY_BYTES = 4 * 1024 * 1024
# Larger ones are set aside unread.
_LARGEST_ENTRY_BYTES = 64 * 1024 * 1024
# To decode more without a pause would hold up all else in this process.
_DECODED_AT_A_TIME_BYTES = 256 * 1024

Fields = list[str | bytes]


class RedisQueue(ABC, Generic[T]):
    """Items that must get somewhere else. An entry stays until it is settled, whoever dies in between.

    :param stream: the stream's key.
    :param parked: the key of the stream for what will never get there.
    :param group: the stream's consumer group.
    :param consumer: this process's name among the replicas.
    :param limit: how many items it holds at most. Checked against the last known length, so that adding costs one
        round trip; replicas that add at the same moment may exceed it by what they add.
    """

    def __init__(
        self, gateway: RedisGateway, *, stream: str, parked: str, group: str, consumer: str, limit: int
    ) -> None:
        self._gateway = gateway
        self._stream = stream
        self._parked = parked
        self._waiting = f"{stream}:waiting"
        self._group = group
        self._consumer = consumer
        self._limit = limit
        self._length: int | None = None  # until it was seen
        self._cursor = "0-0"
        self._in_doubt = False

    @abstractmethod
    def _fields(self, item: T) -> Fields:
        """The fields and values of an entry."""

    @abstractmethod
    def _item(self, fields: dict[bytes, bytes]) -> T:
        """What `_fields` was given.

        :raises KeyError, ValueError, TypeError: these are not of its making.
        """

    def _since_ms(self, item: T) -> int | None:
        """Since when an item has waited already; None where it begins to wait now."""
        return None

    @abstractmethod
    def _full(self, limit: int) -> Exception:
        """What to raise when there is no room."""

    async def append(self, items: Sequence[T], *along: Command) -> None:
        """Take items in, all or none; they are durable when this returns.

        To append the same items again, because it is unknown whether they were taken, adds nothing twice.

        :param along: commands that are carried out in the same transaction.
        """
        if not items:
            return
        if (self._length or 0) + len(items) > self._limit and await self.backlog() + len(items) > self._limit:
            raise self._full(self._limit)
        entries = _identified([self._fields(item) for item in items], map(self._since_ms, items))
        addition = self._addition(self._stream, "taken", _REMEMBERED, entries)
        # What is large would hold up others on the connection in common.
        large = sum(len(part) for part in addition if isinstance(part, bytes)) > _LARGE_BYTES
        send = self._gateway.call if large else self._gateway.call_multiplexed
        with self._foreign_key_named():
            if along:
                *_, replies = await send(("MULTI",), *along, addition, ("EXEC",))
                self._length = replies[-1]
            else:
                [self._length] = await send(addition)

    def additions(self, items: Sequence[T]) -> list[Command]:
        """The commands that take items in, for a transaction of somebody else's."""
        return [("XADD", self._stream, "*", *self._fields(item)) for item in items]

    async def lease(self, limit: int) -> list[Leased[T]]:
        """Take entries that no one has leased yet, oldest first, and at least one.

        Where the reply to the last try is lost, those of that try come first.

        :param limit: at most so many; fewer where they are large.
        """
        if self._in_doubt and (again := await self.resume(limit)):
            return again
        # Until there is a reply, entries may be leased to this process without its knowing.
        self._in_doubt = True
        leased = await self._leased(await self._take(limit, LEASE, ">"))
        self._in_doubt = False
        return leased

    async def resume(self, limit: int) -> list[Leased[T]]:
        """Take again what this process has leased and not settled, since whoever drained it died over it."""
        after = "0"
        while entries := await self._take(limit, LEASE, after):
            leased = await self._leased(entries)
            if leased:
                return leased
            after = entries[-1][0].decode()  # all of these were deleted by someone else
        return []

    async def recover(self, idle_seconds: float, limit: int) -> list[Leased[T]]:
        """Take over entries that were leased so long ago that their holder must have died."""
        in_doubt, self._in_doubt = self._in_doubt, True
        leased = await self._leased(await self._take(limit, RECOVER, int(idle_seconds * 1000), self._cursor))
        self._in_doubt = in_doubt
        return leased

    async def ack(self, entry_ids: Sequence[str]) -> None:
        """Forget entries whose items got where they were to go."""
        if entry_ids:
            *_, self._length = await self._transaction(*self._removal(entry_ids), ("XLEN", self._stream))

    async def requeue(self, leased: Sequence[Leased[T]]) -> None:
        """Give entries back, to the end of the queue."""
        for start in range(0, len(leased), _MOVED_AT_A_TIME):
            entries = {entry.entry_id: entry for entry in leased[start : start + _MOVED_AT_A_TIME]}
            missing = await self._move(self._stream, list(entries))
            # Redis may have been flushed. What is in hand must not be lost with it.
            lost = [entries[entry_id] for entry_id in missing]
            await self._put_back(
                self._stream, [(one.entry_id, self._waits_since_ms(one), self._fields(one.message)) for one in lost]
            )

    async def park(self, leased: Leased[T], problem: str) -> None:
        """Set aside an entry that will never get there, so that it blocks nothing and is not lost."""
        await self._set_aside(leased.entry_id, self._fields(leased.message), problem)

    async def _set_aside(self, entry_id: str, fields: Fields, problem: str) -> None:
        missing = await self._move(self._parked, [entry_id], "problem", problem)
        await self._put_back(self._parked, [(entry_id, None, [*fields, "problem", problem]) for entry_id in missing])

    async def _move(self, target: str, entry_ids: Sequence[str], *more: str) -> list[str]:
        """Move entries to the end of a stream.

        :param more: fields and values that each of them gets in addition.
        :returns: the ids of entries that are not there.
        """
        keys = (self._stream, target, *self._memory("moved"), self._waiting)
        with self._foreign_key_named():
            [missing] = await self._gateway.call(
                ("EVAL", MOVE, len(keys), *keys, _REMEMBERED_MOVES, self._group, len(more), *more, *entry_ids)
            )
        return [entry_id.decode() for entry_id in missing]

    def _waits_since_ms(self, leased: Leased[T]) -> int:
        since_ms = self._since_ms(leased.message)
        return int(leased.entry_id.partition("-")[0]) if since_ms is None else since_ms

    async def _put_back(self, target: str, entries: Sequence[tuple[str, int | None, Fields]]) -> None:
        if entries:
            with self._foreign_key_named():
                await self._gateway.call(self._addition(target, "moved", _REMEMBERED_MOVES, entries))

    def _addition(
        self, target: str, memory: str, remembered: int, entries: Iterable[tuple[str | bytes, int | None, Fields]]
    ) -> Command:
        """The command that adds entries, each with its identity, unless they were added before."""
        keys = (target, *self._memory(memory), self._waiting)
        parts = chain.from_iterable(
            (identity, "" if since_ms is None else since_ms, len(fields), *fields)
            for identity, since_ms, fields in entries
        )
        return ("EVAL", ADD, len(keys), *keys, remembered, *parts)

    def _memory(self, name: str) -> tuple[str, str]:
        return f"{self._stream}:{name}", f"{self._stream}:{name}:before"

    async def backlog(self) -> int:
        """How many entries wait, leased ones included."""
        [length] = await self._transaction(("XLEN", self._stream))
        self._length = int(length)
        return self._length

    async def measure(self) -> Waiting:
        """How many entries wait, and for how long the oldest has."""
        with self._foreign_key_named():
            [reply] = await self._gateway.call(("EVAL", WAITING, 2, self._stream, self._waiting))
        length, since_ms, now_ms = map(int, reply)
        self._length = length
        return Waiting(length, max(0, now_ms - since_ms) / 1000)

    async def _transaction(self, *commands: Command) -> list[Any]:
        with self._foreign_key_named():
            replies = await self._gateway.call(("MULTI",), *commands, ("EXEC",))
        results: list[Any] = replies[-1]
        return results

    @contextmanager
    def _foreign_key_named(self) -> Iterator[None]:
        # No fault of what was to be queued: nothing may be buried for this, and once the key is deleted all goes on.
        try:
            yield
        except ResponseError as error:
            problem = f"{self._stream} or {self._parked} is not a stream ({error})"
            raise StoreUnavailable("redis", problem, answered=True) from error

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
        """Call, and create the consumer group first where there is none, at the start or after a FLUSHALL."""
        for _ in range(_GROUP_ATTEMPTS):
            with self._foreign_key_named():
                try:
                    [reply] = await self._gateway.call(command)
                except ResponseError as error:
                    if code_of(error) != NO_GROUP:
                        raise
                    await self._create_group()
                else:
                    return reply
        raise StoreUnavailable("redis", "it forgets the group as soon as there is one")

    async def _create_group(self) -> None:
        try:
            # From the beginning: what was added before the group existed waits for it.
            await self._gateway.call(("XGROUP", "CREATE", self._stream, self._group, "0", "MKSTREAM"))
        except ResponseError as error:
            if code_of(error) != GROUP_EXISTS:  # else another replica was first
                raise

    async def _leased(self, entries: Sequence[Any]) -> list[Leased[T]]:
        leased: list[Leased[T]] = []
        decoded_bytes = 0
        for entry in entries:
            raw_id, fields = entry or (b"", None)
            if not fields:
                continue  # it was deleted while it was leased; Redis 6.2 has nothing at all in its place
            decoded_bytes += sum(map(len, fields))
            if decoded_bytes > _DECODED_AT_A_TIME_BYTES:
                decoded_bytes = 0
                await checkpoint()
            entry_id = raw_id.decode()
            try:
                item = self._item(dict(zip(fields[::2], fields[1::2], strict=True)))
            except (KeyError, ValueError, TypeError) as error:
                # Of another release, or not ours at all: it must neither be lost nor come back for ever.
                await self._set_aside(entry_id, fields, f"not readable: {error!r}")
                log.error("queue_entry_parked", stream=self._stream, entry_id=entry_id, problem=repr(error))  # noqa: TRY400
            else:
                leased.append(Leased(entry_id, item))
        return leased

    def _removal(self, entry_ids: Sequence[str]) -> list[Command]:
        return [("XACK", self._stream, self._group, *entry_ids), ("XDEL", self._stream, *entry_ids)]


def _identified(entries: Sequence[Fields], since_ms: Iterable[int | None]) -> list[tuple[bytes, int | None, Fields]]:
    """Entries, each with what is the same for the same content and for no other, whenever it began to wait."""
    found: Counter[bytes] = Counter()
    identified: list[tuple[bytes, int | None, Fields]] = []
    for fields, since in zip(entries, since_ms, strict=True):
        content = packed([tuple(fields)])
        identity = blake2b(content, digest_size=_IDENTITY_BYTES).digest()
        # Whoever gives two of the same at once wants two.
        if earlier := found[identity]:
            identified.append((identity + b"%d" % earlier, since, fields))
        else:
            identified.append((identity, since, fields))
        found[identity] += 1
    return identified
