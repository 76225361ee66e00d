"""A stream of a queue in Redis. Every replica drains it, and takes over the unacked entries of a dead replica."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from anyio.lowlevel import checkpoint
from redis.exceptions import ResponseError

from bcs.errors import StoreUnavailable
from bcs.storage.ports import Leased
from bcs.storage.redis.commands import Command, packed_one
from bcs.storage.redis.errors import GROUP_EXISTS, NO_GROUP, code_of
from bcs.storage.redis.nodes import Node, Nodes
from bcs.storage.redis.queue_scripts import ACK, ADD, LEASE, MOVE, RECOVER, REMOVE, WAITING
from bcs.storage.redis.script import Script

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
# As the script goes on to read.
_READ_AT_A_TIME = 20
# Larger entries are parked unread.
_LARGEST_ENTRY_BYTES = 64 * 1024 * 1024
# Decoding more without a pause would block the event loop.
_DECODED_AT_A_TIME_BYTES = 256 * 1024

Fields = list[str | bytes]


class _Addition(NamedTuple):
    """An entry to add.

    :param identity: a repeated write of an entry has the same identity.
    :param since_ms: since when it has waited, in milliseconds since 1970 UTC; None where its wait starts now.
    :param once_key: a key that exists while no such entry is to be added again; None where there is none.
    """

    identity: str | bytes
    since_ms: int | None
    fields: Fields
    once_key: str | None = None


class KnownLengths:
    """The lengths of all streams of a queue together, by the last replies."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class RedisQueue(ABC, Generic[T]):
    """A stream of items that must reach another system. An entry stays until it is acked, also when processes die.

    It is one of the streams of a `StreamSet`, which says how many entries all of them may have.

    :param stream: the stream's key.
    :param parked: the key of the stream for items that the other system will never accept.
    :param group: the stream's consumer group.
    :param consumer: this process's name among the replicas.
    :param lengths: gets the stream's length.
    :param once_ms: how long an entry with a key of its own is not added again, in milliseconds; see `_once_key`.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        stream: str,
        parked: str,
        group: str,
        consumer: str,
        lengths: KnownLengths,
        once_ms: int = 0,
    ) -> None:
        self.key = stream
        self.length: int | None = None
        """The length in the last reply; None before the first one."""
        self.in_doubt = False
        """True if entries may be leased to this process that it does not have, because a reply was lost."""
        self._nodes = nodes
        self._lengths = lengths
        self._parked = parked
        self._waiting = f"{stream}:waiting"
        self._once_ms = once_ms
        self._group = group
        self._consumer = consumer
        self._cursor = "0-0"
        self._largest_bytes = 0  # the largest of the entries that were leased last; 0 where none were
        # The entries that this process has leased and not given back; None where an earlier process of the same name
        # may have leased entries.
        self._held: set[str] | None = None

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

    def _once_key(self, item: T) -> str | None:
        """A key that is the same for equal items, whenever they were made; None where each item is to be added."""
        return None

    @property
    def node(self) -> Node:
        """The server that has the stream."""
        return self._nodes.at(self.key)

    @property
    def may_hold(self) -> bool:
        """True if this process may have leased entries that are not acked."""
        return self.in_doubt or self._held is None or bool(self._held)

    async def append(self, items: Sequence[T], *commands: Command, then: Sequence[Command] = ()) -> list[Any]:
        """Append items, all or none; they are durable when this returns.

        If it is unknown whether an append succeeded, repeat it with the same items: no item is added twice.

        :param commands: more commands for the same transaction.
        :param then: commands that are carried out after the items were appended.
        :returns: the replies to `then`.
        :raises StoreUnavailable: whether the items were appended is unknown.
        """
        entries, size_bytes = self._identified(items)
        keys, arguments = self._addition(self.key, "taken", _KEPT_IDENTITIES, entries)
        node = self.node
        # A large command would delay other callers on the shared connection.
        send = node.call if size_bytes > _LARGE_BYTES else node.call_multiplexed
        try:
            # In a transaction the script is sent whole, because the other commands would be carried out without it.
            replies = [] if commands else await self._add_by_digest(send, ADD.by_digest(keys, *arguments), then)
            if not replies:
                added = await send(("MULTI",), *commands, ADD.whole(keys, *arguments), ("EXEC",), *then)
                executed = len(commands) + 2
                replies = [added[executed][-1], *added[executed + 1 :]]
        except ResponseError as error:
            raise self._no_stream(error) from error
        self.note_length(replies[0])
        return replies[1:]

    @staticmethod
    async def _add_by_digest(
        send: Callable[..., Awaitable[list[Any]]], command: Command, then: Sequence[Command]
    ) -> list[Any]:
        """Add entries by the short form of the script.

        :returns: the replies; empty if Redis lacks the script, or refuses the short form.
        """
        try:
            return await send(command, *then)
        except ResponseError as error:
            if not ADD.is_missing(error):
                raise
        except StoreUnavailable as failure:
            # The user may have the right to EVAL, and not to EVALSHA.
            if not failure.answered:
                raise
        return []

    def additions(self, items: Sequence[T]) -> list[Command]:
        """The commands that append items, for the transaction of another stream with the same hash tag."""
        return [("XADD", self.key, "*", *self._fields(item)) for item in items]

    async def lease(self, limit: int) -> list[Leased[T]]:
        """Lease entries that no replica has leased yet, oldest first, and at least one if there is one.

        Where the reply to the last call was lost, the entries of that call come first.

        :param limit: how many entries at most; fewer where they are large.
        """
        if self.in_doubt and (again := await self.resume(limit)):
            return again
        self.in_doubt = True
        return await self.leased_by(await self._take(LEASE, limit, ">", self._first_read(_REPLY_BYTES)))

    def lease_command(self, limit: int, share: float) -> Command:
        """The command that leases, for one round trip with those of other streams; see `leased_by`.

        :param share: how much of the reply to all commands this stream's entries may fill.
        """
        # Until the reply arrives, entries may be leased to this process that it does not have.
        self.in_doubt = True
        most_bytes = int(_REPLY_BYTES * share)
        return LEASE.by_digest(*self._taking(limit, most_bytes, ">", self._first_read(most_bytes)))

    async def leased_by(self, reply: Sequence[Any]) -> list[Leased[T]]:
        """The entries in the reply to `lease_command`."""
        leased = await self._leased(self._taken(reply))
        self.in_doubt = False
        return leased

    async def resume(self, limit: int) -> list[Leased[T]]:
        """Lease again the entries that this process has leased and not acked, after a crash of the actor."""
        after = "0"
        while entries := self._taken(await self._take(LEASE, limit, after, 1)):
            leased = await self._leased(entries)
            if leased:
                return leased
            after = entries[-1][0].decode()  # another replica has deleted all of these entries
        self._held = set()
        return []

    async def recover(self, idle_seconds: float, limit: int) -> list[Leased[T]]:
        """Take over entries whose lease is so old that its holder must have died."""
        in_doubt, self.in_doubt = self.in_doubt, True
        reply = await self._take(RECOVER, limit, int(idle_seconds * 1000), self._cursor)
        self._cursor = reply[2].decode()
        leased = await self._leased(self._taken(reply))
        self.in_doubt = in_doubt
        return leased

    async def ack(self, leased: Sequence[Leased[T]]) -> None:
        """Delete entries whose items have reached the other system."""
        # Whole, so that Redis has the script when `ack_command` is sent.
        with self._wrong_type_as_outage():
            [length] = await self.node.call(ACK.whole(*self._acking(leased)))
        self.acked_by(leased, length)

    def ack_command(self, leased: Sequence[Leased[T]]) -> Command:
        """The command that acks, for one round trip with those of other streams; see `acked_by`."""
        return ACK.by_digest(*self._acking(leased))

    def _acking(self, leased: Sequence[Leased[T]]) -> tuple[Any, ...]:
        """The keys and arguments of `ACK`."""
        return (self.key,), self._group, *(entry.entry_id for entry in leased)

    def acked_by(self, leased: Sequence[Leased[T]], length: int) -> None:
        """Note the reply to `ack_command`."""
        self.note_length(length)
        self._note_given_back(entry.entry_id for entry in leased)

    async def requeue(self, leased: Sequence[Leased[T]]) -> None:
        """Move leased entries back to the end of the stream."""
        for start in range(0, len(leased), _MOVED_AT_A_TIME):
            entries = {entry.entry_id: entry for entry in leased[start : start + _MOVED_AT_A_TIME]}
            missing = await self._move(self.key, list(entries))
            # Redis may have lost these entries by a FLUSHALL, so the leased copies are added again.
            lost = [entries[entry_id] for entry_id in missing]
            await self._add_again(
                self.key,
                [_Addition(one.entry_id, self._waits_since_ms(one), self._fields(one.message)) for one in lost],
            )
            self._note_given_back(entries)

    async def park(self, leased: Leased[T], problem: str) -> None:
        """Move an entry that the other system will never accept to the parked stream, so that it blocks no other."""
        await self._move_to_parked(leased.entry_id, self._fields(leased.message), problem)
        self._note_given_back([leased.entry_id])

    async def _move_to_parked(self, entry_id: str, fields: Fields, problem: str) -> None:
        missing = await self._move(self._parked, [entry_id], "problem", problem)
        again = [_Addition(entry_id, None, [*fields, "problem", problem]) for entry_id in missing]
        await self._add_again(self._parked, again)

    async def _move(self, target: str, entry_ids: Sequence[str], *more: str) -> list[str]:
        """Move entries to the end of a stream.

        :param more: additional fields and values for each entry.
        :returns: the ids of missing entries.
        """
        keys = (self.key, target, *self._memory("moved"), self._waiting)
        with self._wrong_type_as_outage():
            [missing] = await self.node.call(
                ("EVAL", MOVE, len(keys), *keys, _KEPT_MOVES, self._group, len(more), *more, *entry_ids)
            )
        return [entry_id.decode() for entry_id in missing]

    def _waits_since_ms(self, leased: Leased[T]) -> int:
        since_ms = self._since_ms(leased.message)
        return int(leased.entry_id.partition("-")[0]) if since_ms is None else since_ms

    async def _add_again(self, target: str, entries: Sequence[_Addition]) -> None:
        if entries:
            keys, arguments = self._addition(target, "moved", _KEPT_MOVES, entries)
            with self._wrong_type_as_outage():
                await self.node.call(ADD.whole(keys, *arguments))

    def _addition(
        self, target: str, memory: str, kept: int, entries: Iterable[_Addition]
    ) -> tuple[tuple[str, ...], list[str | bytes | int]]:
        """The keys and arguments of `ADD` for entries with their identities."""
        keys = [target, *self._memory(memory), self._waiting]
        arguments: list[str | bytes | int] = [kept, self._once_ms]
        for identity, since_ms, fields, once_key in entries:
            number = 0
            if once_key is not None:
                keys.append(once_key)
                number = len(keys)
            arguments += (identity, "" if since_ms is None else since_ms, number, len(fields), *fields)
        return tuple(keys), arguments

    def _identified(self, items: Sequence[T]) -> tuple[list[_Addition], int]:
        """The entries of items, and their size in bytes.

        The same content has the same identity, whenever it started to wait.
        """
        found: dict[bytes, int] = {}
        identified: list[_Addition] = []
        size_bytes = 0
        for item in items:
            fields = self._fields(item)
            content = packed_one(tuple(fields))
            size_bytes += len(content)
            identity = blake2b(content, digest_size=_IDENTITY_BYTES).digest()
            # Two equal entries in one call are two entries, so the second gets its own identity.
            earlier = found.get(identity, 0)
            found[identity] = earlier + 1
            if earlier:
                identity += b"%d" % earlier
            identified.append(_Addition(identity, self._since_ms(item), fields, self._once_key(item)))
        return identified, size_bytes

    def _memory(self, name: str) -> tuple[str, str]:
        return f"{self.key}:{name}", f"{self.key}:{name}:before"

    @abstractmethod
    def _is_about(self, fields: dict[bytes, bytes], batch_id: str) -> bool:
        """True if an entry has something of a batch that has to be erased with it."""

    async def erase(self, batch_id: str, *, dry_run: bool) -> int:
        """Remove the entries about a batch, leased and parked ones included.

        :param dry_run: True to count them only.
        :returns: how many there were.
        :raises StoreUnavailable: some entries may be removed.
        """
        return sum([await self._erase(key, batch_id, dry_run=dry_run) for key in self.keys])

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of the stream, and of the stream of its parked entries."""
        return self.key, self._parked

    async def _erase(self, key: str, batch_id: str, *, dry_run: bool) -> int:
        found, after = 0, "-"
        with self._wrong_type_as_outage():
            while True:
                [entries] = await self.node.call(("XRANGE", key, after, "+", "COUNT", _READ_AT_A_TIME))
                ids = []
                for entry_id, fields in entries:
                    if self._is_about(dict(zip(fields[::2], fields[1::2], strict=True)), batch_id):
                        ids.append(entry_id.decode())
                    if sum(map(len, fields)) > _DECODED_AT_A_TIME_BYTES:
                        await checkpoint()
                if ids and not dry_run:
                    await self._remove(key, ids)
                found += len(ids)
                if len(entries) < _READ_AT_A_TIME:
                    return found
                after = f"({entries[-1][0].decode()}"

    async def _remove(self, key: str, ids: Sequence[str]) -> None:
        keys = (key, *self._memory("moved"))
        [[_, length]] = await self.node.call(("EVAL", REMOVE, len(keys), *keys, _KEPT_MOVES, self._group, *ids))
        if key == self.key:
            self.note_length(length)
            self._note_given_back(ids)

    async def count(self) -> None:
        """Ask for the `length`, including leased entries.

        This uses the shared connection, because the caller may hold one of the others.
        """
        with self._wrong_type_as_outage():
            [length] = await self.node.call_multiplexed(("XLEN", self.key))
        self.note_length(length)

    def note_length(self, length: int) -> None:
        """Note the length in a reply."""
        length = int(length)
        self._lengths.total += length - (self.length or 0)
        self.length = length
        if not length:
            self._held = set()

    async def oldest_seconds(self) -> float:
        """How long the oldest entry has waited; 0 if no entry waits."""
        with self._wrong_type_as_outage():
            [reply] = await self.node.call(self.oldest_command())
        return self.oldest_by(reply)

    def oldest_command(self) -> Command:
        """The command of `oldest_seconds`, for one round trip with those of other streams; see `oldest_by`."""
        return WAITING.whole((self.key, self._waiting))

    def oldest_by(self, reply: Sequence[Any]) -> float:
        """How long the oldest entry has waited, in seconds, by the reply to `oldest_command`."""
        length, since_ms, now_ms = map(int, reply)
        self.note_length(length)
        return max(0, now_ms - since_ms) / 1000

    @contextmanager
    def _wrong_type_as_outage(self) -> Iterator[None]:
        try:
            yield
        except ResponseError as error:
            raise self._no_stream(error) from error

    def _no_stream(self, error: ResponseError) -> StoreUnavailable:
        # An outage, because the items are valid: no message may become a dead letter for this. An operator has to
        # delete the key.
        return StoreUnavailable("redis", f"{self.key} or {self._parked} is not a stream ({error})", answered=True)

    async def _take(self, script: Script, limit: int, *where: str | int) -> Any:
        return await self._call_in_group(script.whole(*self._taking(limit, _REPLY_BYTES, *where)))

    def _taking(self, limit: int, most_bytes: int, *where: str | int) -> tuple[Any, ...]:
        """The keys and arguments of `LEASE` and `RECOVER`."""
        about = (self._group, self._consumer, limit, max(1, most_bytes), _LARGEST_ENTRY_BYTES)
        return (self.key, self._parked), *about, *where

    def _taken(self, reply: Sequence[Any]) -> list[Any]:
        for entry_id in reply[1]:
            log.error("queue_entry_parked", stream=self.key, entry_id=entry_id.decode(), problem="too large")
        taken: list[Any] = reply[0]
        return taken

    def _first_read(self, most_bytes: int) -> int:
        """How many entries to read first: as many as fit by far if they are like the last ones."""
        return max(1, min(_READ_AT_A_TIME, most_bytes // (4 * self._largest_bytes + 1))) if self._largest_bytes else 1

    async def _call_in_group(self, command: Command) -> Any:
        """Call, and first create the consumer group where it is missing, at the start or after a FLUSHALL."""
        for _ in range(_GROUP_ATTEMPTS):
            with self._wrong_type_as_outage():
                try:
                    [reply] = await self.node.call(command)
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
            await self.node.call(("XGROUP", "CREATE", self.key, self._group, "0", "MKSTREAM"))
        except ResponseError as error:
            if code_of(error) != GROUP_EXISTS:  # else another replica was first
                raise

    async def _leased(self, entries: Sequence[Any]) -> list[Leased[T]]:
        leased: list[Leased[T]] = []
        decoded_bytes = largest_bytes = 0
        for entry in entries:
            raw_id, fields = entry or (b"", None)
            if not fields:
                continue  # deleted while it was leased; Redis 6.2 returns a null in its place
            entry_bytes = sum(map(len, fields))
            largest_bytes = max(largest_bytes, entry_bytes)
            decoded_bytes += entry_bytes
            if decoded_bytes > _DECODED_AT_A_TIME_BYTES:
                decoded_bytes = 0
                await checkpoint()
            entry_id = raw_id.decode()
            try:
                item = self._item(dict(zip(fields[::2], fields[1::2], strict=True)))
            except (KeyError, ValueError, TypeError) as error:
                # From another release or another program: the entry must not be lost, and must not come back for ever.
                await self._move_to_parked(entry_id, fields, f"not readable: {error!r}")
                log.error("queue_entry_parked", stream=self.key, entry_id=entry_id, problem=repr(error))  # noqa: TRY400
            else:
                leased.append(Leased(entry_id, item, self.key))
        self._largest_bytes = largest_bytes or self._largest_bytes
        if self._held is not None:
            self._held.update(entry.entry_id for entry in leased)
        return leased

    def _note_given_back(self, entry_ids: Iterable[str]) -> None:
        if self._held:
            self._held.difference_update(entry_ids)
