"""A queue in several streams: spread by key, drained in turn, and never held up by one of them.

The order of the entries with one key holds, because they are in one stream. Nothing is said about the order of entries
in different streams, so also not about entries of one batch that were appended by processes with different layouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Generic, TypeVar

import anyio
import structlog
from redis.exceptions import ResponseError

from bcs.errors import StoreUnavailable
from bcs.storage.ports import ErasedEntries, Leased, Waiting
from bcs.storage.redis.commands import Command
from bcs.storage.redis.nodes import Node
from bcs.storage.redis.queue import KnownLengths, RedisQueue
from bcs.storage.redis.stream_layouts import StreamLayouts, ask_each, by_server, small_calls

T = TypeVar("T")

log = structlog.stdlib.get_logger("bcs.queue")

# Measuring asks all streams each second, and notices the end of a failure. Where nobody measures, whoever leases looks
# again after this time: to ask a server that does not answer takes until the deadline.
_RETRY_SECONDS = 5.0

_Change = Callable[[RedisQueue[T], Sequence[Leased[T]]], Awaitable[None]]

# Streams that one call leases from, however few entries they have.
_STREAMS_AT_A_TIME = 4

# What may fail with a stream while other calls succeed. Only a success of the same kind ends such a failure.
_COUNT, _LEASE, _TAKE_OVER, _CHANGE, _MEASURE = "count", "lease", "take over", "change", "measure"
# Failures that are no reason to lease nothing.
_HARMLESS = (_TAKE_OVER, _MEASURE)
# A failure of the server, which any answer ends.
_SERVER = "server"


@dataclass(frozen=True, slots=True)
class _Failure:
    """A stream that can't be used.

    :param address: the server's.
    :param retry_at: when it is tried again, by the clock of anyio.
    """

    error: StoreUnavailable
    address: str
    retry_at: float


class StreamSet(ABC, Generic[T]):
    """The streams of one queue, those of the layouts of other processes included.

    A call with several streams makes one round trip to each server. If one of these streams has a problem, they are
    asked one by one. A call fails only if no stream can be used. What had to be changed in a stream that can't be used
    is changed once it answers again. Until then this process keeps its leases, and after its end another process takes
    them over.

    :param limit: how many entries all streams hold at most. This is checked against the last known lengths, so that
        appending costs one round trip; replicas that append at the same time may exceed the limit.
    :param few: a stream with fewer entries can wait for a later call of `lease`, if others have entries. To lease and
        to ack takes a command for each stream. That is no gain where the next step costs more, so it is 0 by default.
    """

    def __init__(self, layouts: StreamLayouts, *, limit: int, few: int = 0) -> None:
        self._layouts = layouts
        self._limit = limit
        self._few = few
        self._lengths = KnownLengths()
        # Streams of releases before, which are drained, and to which nothing is added.
        self._former: Sequence[RedisQueue[T]] = ()
        self._numbered: list[RedisQueue[T]] = []
        self._failures: dict[tuple[str, str], _Failure] = {}  # by the stream's key and the kind
        self._due: dict[str, list[tuple[_Change[T], Sequence[Leased[T]]]]] = {}
        self._oldest_at: dict[str, float] = {}
        self._turn = 0

    @abstractmethod
    def _stream(self, number: int) -> RedisQueue[T]:
        """Make the stream with a number."""

    @abstractmethod
    def _key(self, item: T) -> bytes:
        """Items with the same key go to the same stream."""

    @abstractmethod
    def _full_error(self, limit: int) -> Exception:
        """The error to raise when the queue is full."""

    @property
    def failing(self) -> Mapping[str, StoreUnavailable]:
        """The keys that can't be used now, each with the reason."""
        failures = {key: each.error for (key, kind), each in self._failures.items() if kind != _TAKE_OVER}
        return {**self._layouts.failing, **failures}

    @property
    def last_known(self) -> int | None:
        """How many entries waited by the last replies; None while that of a stream is unknown."""
        lengths = [stream.length for stream in self._streams()]
        return None if None in lengths else self._lengths.total

    async def append(self, items: Sequence[T]) -> None:
        """Append items, those with the same key all or none; they are durable when this returns.

        If it is unknown whether an append succeeded, repeat it with the same items: no item is added twice.

        :raises StoreUnavailable: whether each of the items was appended is unknown.
        """
        if not items:
            return
        await self._ensure_room(len(items))
        if len(items) == 1:
            await self._append_to(self._layouts.number(self._key(items[0])), items)
            return
        by_number: dict[int, list[T]] = {}
        for item in items:
            by_number.setdefault(self._layouts.number(self._key(item)), []).append(item)
        if len(by_number) == 1:
            await self._append_to(*by_number.popitem())
            return
        failures: list[StoreUnavailable] = []

        async def append(number: int, part: Sequence[T]) -> None:
            try:
                await self._append_to(number, part)
            except StoreUnavailable as failure:
                failures.append(failure)

        # At the same time, so that the commands share a round trip.
        async with anyio.create_task_group() as tasks:
            for number, part in by_number.items():
                tasks.start_soon(append, number, part)
        if failures:
            failures[0].partly = len(failures) < len(by_number)
            raise failures[0]

    async def _append_to(self, number: int, items: Sequence[T]) -> None:
        await self._numbered_stream(number).append(items)

    async def _ensure_room(self, count: int) -> None:
        """Refuse to append so many items if the queue is full, and make sure that all replicas drain these streams."""
        if self._lengths.total + count > self._limit and await self.backlog() + count > self._limit:
            raise self._full_error(self._limit)
        if not self._layouts.registered:
            await self._layouts.register()

    async def lease(self, limit: int) -> list[Leased[T]]:
        """Lease entries that no replica has leased yet, of each stream the oldest first.

        All streams with entries get a share, and what one does not need is for the others. Where streams have few
        entries, some have their turn in the next calls. Where the reply to the last call was lost, the entries of that
        call come first.

        :param limit: how many entries at most; fewer where they are large.
        """
        streams = await self._with_entries()
        most = self._most_streams(streams, limit)
        leased: list[Leased[T]] = []
        while streams and not leased:
            in_turn, others = streams[:most], streams[most:]
            leased = await self._lease_from(in_turn, limit)
            if others:
                self._turn = self._in_order().index(in_turn[-1])  # the next call begins behind it
            streams = [stream for stream in others if not self._is_blocked(stream)]
        if not leased:
            self._ensure_usable()
        return leased

    def _most_streams(self, streams: Sequence[RedisQueue[T]], limit: int) -> int:
        """How many streams to lease from at a time."""
        if not self._few:
            return limit
        waiting = sum(stream.length or 0 for stream in streams)
        return min(limit, max(_STREAMS_AT_A_TIME, waiting // self._few))

    async def _lease_from(self, streams: Sequence[RedisQueue[T]], limit: int) -> list[Leased[T]]:
        shares = _shares(streams, limit)
        leased: list[Leased[T]] = []

        async def together(node: Node, group: Sequence[RedisQueue[T]]) -> None:
            commands = [stream.lease_command(shares[stream.key], shares[stream.key] / limit) for stream in group]
            for stream, reply in zip(group, await node.call(*commands), strict=True):
                leased.extend(await stream.leased_by(reply))

        async def alone(stream: RedisQueue[T]) -> None:
            leased.extend(await stream.lease(shares[stream.key]))

        in_doubt = [stream for stream in streams if stream.in_doubt]
        await self._ask(_LEASE, [stream for stream in streams if stream not in in_doubt], alone, together)
        await self._ask(_LEASE, in_doubt, alone)
        return leased

    async def resume(self, limit: int) -> list[Leased[T]]:
        """Lease again the entries that this process has leased and not acked, after a crash of the actor."""
        if not any(stream.may_hold for stream in self._streams()):
            return []
        leased: list[Leased[T]] = []

        async def alone(stream: RedisQueue[T]) -> None:
            leased.extend(await stream.resume(limit - len(leased)))

        for stream in await self._with_entries():
            if stream.may_hold and len(leased) < limit:
                await self._ask(_LEASE, [stream], alone)
        if not leased:
            self._ensure_usable()
        return leased

    async def recover(self, idle_seconds: float, limit: int) -> list[Leased[T]]:
        """Take over entries whose lease is so old that its holder must have died.

        :raises StoreUnavailable: no stream can be used, or Redis refuses to let entries be taken over.
        """
        leased: list[Leased[T]] = []

        async def alone(stream: RedisQueue[T]) -> None:
            leased.extend(await stream.recover(idle_seconds, limit - len(leased)))

        for stream in await self._with_entries():
            if len(leased) < limit:
                await self._ask(_TAKE_OVER, [stream], alone)
        if not leased:
            self._ensure_usable()
            for (_, kind), failure in self._failures.items():
                if kind == _TAKE_OVER:
                    raise failure.error
        return leased

    async def ack(self, leased: Sequence[Leased[T]]) -> None:
        """Delete entries whose items have reached the other system."""
        entries = self._by_stream(leased)

        async def together(node: Node, group: Sequence[RedisQueue[T]]) -> None:
            lengths = await node.call(*(stream.ack_command(entries[stream.key]) for stream in group))
            for stream, length in zip(group, lengths, strict=True):
                stream.acked_by(entries[stream.key], length)

        await self._change(entries, RedisQueue.ack, together)

    async def requeue(self, leased: Sequence[Leased[T]]) -> None:
        """Move leased entries back to the end of their stream."""
        await self._change(self._by_stream(leased), RedisQueue.requeue)

    async def park(self, leased: Leased[T], problem: str) -> None:
        """Move an entry that the other system will never accept to a parked stream, so that it blocks no other."""

        async def park(stream: RedisQueue[T], entries: Sequence[Leased[T]]) -> None:
            for entry in entries:
                await stream.park(entry, problem)

        await self._change(self._by_stream([leased]), park)

    async def erase(self, batch_id: str, *, dry_run: bool, seconds: float) -> ErasedEntries:
        """Remove the entries about a batch from all streams, leased and parked ones included.

        :param dry_run: True to count them only.
        :param seconds: how long this may take.
        """
        erased, unread = 0, list[str]()
        until = anyio.current_time() + seconds
        await self._layouts.renew()
        failing: dict[str, StoreUnavailable] = {}
        commands: dict[str, list[Command]] = {
            stream.key: [("XLEN", key) for key in stream.keys] for stream in self._streams()
        }
        lengths = await small_calls(self._layouts.nodes, commands, failing)
        for stream in self._streams():
            if stream.key in lengths and not any(lengths[stream.key]):
                continue
            number = None
            with anyio.move_on_at(until):
                try:
                    number = await stream.erase(batch_id, dry_run=dry_run)
                except StoreUnavailable as error:
                    log.warning("entries_not_erased", stream=stream.key, batch_id=batch_id, problem=str(error))
            if number is None:
                unread.append(stream.key)
            erased += number or 0
        return ErasedEntries(erased, tuple(unread))

    async def backlog(self) -> int:
        """How many entries wait, including leased ones. Of streams that do not answer, the last known ones count."""
        await self._count(self._streams())
        self._ensure_usable()
        return self._lengths.total

    async def measure(self) -> Waiting:
        """How many entries wait, and how long the oldest has waited; see `backlog` for streams that do not answer."""
        unanswered = await self._count(self._streams())

        async def alone(stream: RedisQueue[T]) -> None:
            note(stream, await stream.oldest_seconds())

        async def together(node: Node, group: Sequence[RedisQueue[T]]) -> None:
            replies = await node.call(*(stream.oldest_command() for stream in group))
            for stream, reply in zip(group, replies, strict=True):
                note(stream, stream.oldest_by(reply))

        def note(stream: RedisQueue[T], oldest_seconds: float) -> None:
            self._oldest_at[stream.key] = anyio.current_time() - oldest_seconds

        streams = [stream for stream in self._streams() if stream.length]
        await self._ask(_MEASURE, [stream for stream in streams if stream not in unanswered], alone, together)
        self._ensure_usable()
        now = anyio.current_time()
        oldest_at = min((self._oldest_at.get(stream.key, now) for stream in streams if stream.length), default=now)
        return Waiting(self._lengths.total, now - oldest_at)

    def _streams(self) -> list[RedisQueue[T]]:
        """All streams, of all layouts."""
        if len(self._numbered) < self._layouts.streams:
            self._numbered += map(self._stream, range(len(self._numbered), self._layouts.streams))
        return [*self._former, *self._numbered]

    def _in_order(self) -> list[RedisQueue[T]]:
        """All streams, those of one server together: where few have their turn, they cost few round trips."""
        return sorted(self._streams(), key=lambda stream: stream.node.address)

    def _numbered_stream(self, number: int) -> RedisQueue[T]:
        if number >= len(self._numbered):
            self._streams()
        return self._numbered[number]

    async def _with_entries(self) -> list[RedisQueue[T]]:
        """The streams that have entries, each time beginning with another one; asks all of them in one round trip."""
        await self._layouts.renew()
        streams = self._streams()
        now = anyio.current_time()
        if self._failures and all(map(self._is_blocked, streams)):
            # The caller decides when to try again.
            self._failures = {each: replace(failure, retry_at=now) for each, failure in self._failures.items()}
        asked = [stream for stream in streams if not self._is_blocked(stream)]
        failed = await self._count(asked)
        await self._catch_up()
        for stream in asked if self._failures else ():
            if not stream.length and stream not in failed:
                self._note_empty(stream)
        self._turn += 1
        start = self._turn % len(streams)
        ordered = self._in_order()
        in_turn = ordered[start:] + ordered[:start]
        return [stream for stream in in_turn if stream.length and stream not in failed and not self._is_blocked(stream)]

    async def _count(self, streams: Sequence[RedisQueue[T]]) -> list[RedisQueue[T]]:
        async def together(node: Node, group: Sequence[RedisQueue[T]]) -> None:
            lengths = await node.call_multiplexed(*(("XLEN", stream.key) for stream in group))
            for stream, length in zip(group, lengths, strict=True):
                stream.note_length(length)

        return await self._ask(_COUNT, streams, RedisQueue.count, together)

    def _by_stream(self, leased: Sequence[Leased[T]]) -> dict[str, list[Leased[T]]]:
        entries: dict[str, list[Leased[T]]] = {}
        for entry in leased:
            entries.setdefault(entry.stream, []).append(entry)
        return entries

    async def _change(
        self,
        entries: Mapping[str, Sequence[Leased[T]]],
        change: _Change[T],
        together: Callable[[Node, Sequence[RedisQueue[T]]], Awaitable[None]] | None = None,
    ) -> None:
        """Change entries, by the keys of their streams; later where a stream does not answer and others do."""
        if not entries:
            return
        streams = [stream for stream in self._streams() if stream.key in entries]
        failed = await self._ask(_CHANGE, streams, lambda stream: change(stream, entries[stream.key]), together)
        if failed:
            self._ensure_usable()
        for stream in failed:
            self._due.setdefault(stream.key, []).append((change, entries[stream.key]))

    async def _catch_up(self) -> None:
        """Make the changes for which a stream did not answer before."""
        for stream in [stream for stream in self._streams() if stream.key in self._due]:
            changes = self._due[stream.key]
            while changes and not self._is_blocked(stream):
                change, entries = changes[0]
                if await self._ask(_CHANGE, [stream], lambda stream: change(stream, entries)):  # noqa: B023 (called at once)
                    break
                changes.pop(0)
            if not changes:
                del self._due[stream.key]

    async def _ask(
        self,
        kind: str,
        streams: Sequence[RedisQueue[T]],
        alone: Callable[[RedisQueue[T]], Awaitable[Any]],
        together: Callable[[Node, Sequence[RedisQueue[T]]], Awaitable[None]] | None = None,
    ) -> list[RedisQueue[T]]:
        """Ask streams, one round trip for each server where that is possible. The failures are noted.

        :param kind: the kind of the call.
        :param alone: asks one stream.
        :param together: asks several streams of one server.
        :returns: the streams that were not asked successfully.
        """
        if not streams:
            return []
        failed: list[RedisQueue[T]] = []

        async def ask(node: Node, group: Sequence[RedisQueue[T]]) -> None:
            if together is not None:
                try:
                    await together(node, group)
                except ResponseError:
                    pass  # one stream has no group yet or is no stream, or Redis lacks the script
                except StoreUnavailable as error:
                    if not error.answered:
                        self._note_failure(kind, group, node, error)
                        failed.extend(group)
                        return
                else:
                    self._note_success(kind, group, node)
                    return
            for stream in group:
                try:
                    await alone(stream)
                except StoreUnavailable as error:
                    self._note_failure(kind, [stream], node, error)
                    failed.append(stream)
                else:
                    self._note_success(kind, [stream], node)

        await ask_each(by_server(self._layouts.nodes, streams, lambda stream: stream.key), ask)
        return failed

    def _fails(self, stream: RedisQueue[T]) -> bool:
        return any(key == stream.key for key, _ in self._failures)

    def _is_blocked(self, stream: RedisQueue[T]) -> bool:
        """True if a stream has failed shortly before, so that it is left alone."""
        if not self._failures:
            return False  # the usual case
        now = anyio.current_time()
        return any(
            key == stream.key and kind not in _HARMLESS and failure.retry_at > now
            for (key, kind), failure in self._failures.items()
        )

    def _note_failure(self, kind: str, streams: Sequence[RedisQueue[T]], node: Node, error: StoreUnavailable) -> None:
        if not error.answered:
            # The server is away, and so are all of its streams.
            kind, streams = _SERVER, [stream for stream in self._streams() if stream.node.address == node.address]
        failure = _Failure(error, node.address, anyio.current_time() + _RETRY_SECONDS)
        self._failures.update(((stream.key, kind), failure) for stream in streams)

    def _note_success(self, kind: str, streams: Sequence[RedisQueue[T]], node: Node) -> None:
        if not self._failures:
            return  # the usual case
        for stream in streams:
            self._failures.pop((stream.key, kind), None)
        for each in [each for each, failure in self._failures.items() if failure.address == node.address]:
            if each[1] == _SERVER:
                del self._failures[each]

    def _note_empty(self, stream: RedisQueue[T]) -> None:
        """Forget failures of a stream that has nothing to lease and to change."""
        self._failures = {each: failure for each, failure in self._failures.items() if each[0] != stream.key}

    def _ensure_usable(self) -> None:
        """Fail if no stream can be used, former ones left aside."""
        if len(self._failures) >= len(self._numbered) and all(map(self._fails, self._numbered)):
            raise min(self._failures.values(), key=lambda failure: failure.error.answered).error


def _shares(streams: Sequence[RedisQueue[T]], limit: int) -> dict[str, int]:
    """How many entries to lease of each stream, at least one: as many as it has, or else an equal part of the rest."""
    shares: dict[str, int] = {}
    left = limit
    for position, stream in enumerate(sorted(streams, key=lambda stream: stream.length or inf)):
        shares[stream.key] = max(1, min(stream.length or limit, left // (len(streams) - position)))
        left -= shares[stream.key]
    return shares
