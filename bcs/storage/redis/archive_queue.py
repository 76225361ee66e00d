"""The queues in Redis in which entries wait for the archive while PostgreSQL is away or slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import anyio

from bcs.domain.history import HistoryEntry
from bcs.errors import BacklogFull, StoreUnavailable
from bcs.storage.history_codec import decode_entry, encode_entry, is_entry_about
from bcs.storage.redis.commands import Command
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.queue import KnownLengths, RedisQueue
from bcs.storage.redis.stream_layouts import (
    StreamLayouts,
    layouts_key,
    number_in,
    small_calls,
    stream_key,
)
from bcs.storage.redis.stream_set import StreamSet

FACTS, EXPLANATIONS = "archive", "explanations"
FORMER_FACTS = "record"
"""The name of the queue of facts in releases before 0.2.0. Entries in it are drained; nothing is added to it."""


def waiting_key(prefix: str, name: str, number: int) -> str:
    """The key of a stream in which entries wait for the archive.

    :param name: the queue's name, `FACTS`, `FORMER_FACTS` or `EXPLANATIONS`.
    """
    # In the slot of the outbox's stream, so that one transaction can add an announcement and its explanation.
    return f"{stream_key(prefix, number)}:{name}"


def refused_key(prefix: str, name: str, number: int) -> str:
    """The key of the stream of entries that PostgreSQL will never accept, beside the stream with a number."""
    return f"{waiting_key(prefix, name, number)}:parked"


class ArchiveQueue(StreamSet[HistoryEntry]):
    """A queue of entries that must reach the archive.

    :param name: the queue's name, `FACTS` or `EXPLANATIONS`.
    :param consumer: this process's name among the replicas.
    :param limit: how many entries the queue holds at most.
    """

    def __init__(self, layouts: StreamLayouts, *, name: str, consumer: str, limit: int) -> None:
        self._name = name
        self._consumer = consumer
        super().__init__(layouts, limit=limit)
        self._former_stream = ArchiveStream(
            layouts.nodes,
            key_prefix=layouts.key_prefix,
            name=FORMER_FACTS,
            number=0,
            consumer=consumer,
            lengths=self._lengths,
        )
        self._former = [self._former_stream] if name == FACTS else []

    @property
    def former_idle_seconds(self) -> float:
        """How long ago this process last saw that entries of a release before 0.2.0 waited; infinite if never."""
        return anyio.current_time() - self._former_stream.filled_at

    async def waiting(self, batch_id: str) -> int:
        """How many entries wait that may be about a batch, those of other layouts and releases included.

        :raises StoreUnavailable: no answer.
        """
        if not self._layouts.registered:
            await self._layouts.register()
        key = batch_id.encode()
        # Only the server that has this stream needs to answer, unless processes use different layouts. It says which.
        own = self._numbered_stream(self._layouts.number(key))
        own_layouts = layouts_key(self._layouts.key_prefix, self._layouts.number(key))
        counted: set[str] = set()
        waiting = 0
        while streams := [stream for stream in self._streams_for(key, own) if stream.key not in counted]:
            commands: dict[str, list[Command]] = {stream.key: [("XLEN", stream.key)] for stream in streams}
            if own in streams:
                commands[own.key].insert(0, ("HGETALL", own_layouts))
            failing: dict[str, StoreUnavailable] = {}
            replies = await small_calls(self._layouts.nodes, commands, failing)
            if failing:
                raise next(iter(failing.values()))
            for stream in streams:
                *fields, length = replies[stream.key]
                stream.note_length(length)
                counted.add(stream.key)
                waiting += int(length)
                if fields and not self._layouts.note(*fields):
                    # Redis has lost the layouts. What other processes append from now on has no effect before they
                    # have registered again.
                    await self._layouts.register()
        return waiting

    async def oldest_seconds(self, batch_id: str) -> float:
        """How long the oldest entry that may be about a batch has waited; 0 if none waits.

        :raises StoreUnavailable: no answer.
        """
        # To count them makes the layouts of other processes known.
        if not await self.waiting(batch_id):
            return 0.0
        key = batch_id.encode()
        streams = self._streams_for(key, self._numbered_stream(self._layouts.number(key)))
        return max([await stream.oldest_seconds() for stream in streams])

    def _streams_for(self, key: bytes, own: RedisQueue[HistoryEntry]) -> list[RedisQueue[HistoryEntry]]:
        """The streams in which entries with a key may wait."""
        numbered = [self._numbered_stream(number_in(layout, key)) for layout in self._layouts.layouts]
        # Releases before have one stream and do not register. They can't use a cluster: there, what is empty stays so.
        of_releases_before = [
            stream
            for stream in (self._numbered_stream(0), *self._former)
            if stream.length != 0 or stream.node.address == own.node.address
        ]
        return list({stream.key: stream for stream in (own, *numbered, *of_releases_before)}.values())

    async def _append_to(self, number: int, items: Sequence[HistoryEntry]) -> None:
        check: Command = ("HGET", layouts_key(self._layouts.key_prefix, number), self._layouts.layout)
        [registered] = await self._numbered_stream(number).append(items, then=[check])
        if registered is None:
            # Redis has lost the layouts. Before these entries have an effect, others must see where they wait.
            await self._layouts.register()

    def additions_if_room(self, number: int, entries: Sequence[HistoryEntry]) -> list[Command]:
        """The commands that add entries to a stream, for another transaction; empty when the queue is full.

        A full queue of explanations must not keep an answer from being sent.
        """
        return [] if self._lengths.total >= self._limit else self._numbered_stream(number).additions(entries)

    def _stream(self, number: int) -> RedisQueue[HistoryEntry]:
        return ArchiveStream(
            self._layouts.nodes,
            key_prefix=self._layouts.key_prefix,
            name=self._name,
            number=number,
            consumer=self._consumer,
            lengths=self._lengths,
        )

    def _key(self, entry: HistoryEntry) -> bytes:
        return entry.batch_id.encode()

    def _full_error(self, limit: int) -> Exception:
        return BacklogFull(limit)


class ArchiveStream(RedisQueue[HistoryEntry]):
    """A stream of entries that must reach the archive.

    :param key_prefix: the prefix of the stream's key.
    :param name: the queue's name, `FACTS`, `FORMER_FACTS` or `EXPLANATIONS`.
    :param number: the stream's number.
    :param consumer: this process's name among the replicas.
    :param lengths: see `RedisQueue`.
    """

    def __init__(
        self, nodes: Nodes, *, key_prefix: str, name: str, number: int, consumer: str, lengths: KnownLengths
    ) -> None:
        super().__init__(
            nodes,
            stream=waiting_key(key_prefix, name, number),
            parked=refused_key(key_prefix, name, number),
            group="archivers",
            consumer=consumer,
            lengths=lengths,
        )
        self.filled_at = -inf
        """When entries were last seen, by the clock of anyio."""

    def note_length(self, length: int) -> None:
        """See `RedisQueue.note_length`."""
        super().note_length(length)
        if self.length:
            self.filled_at = anyio.current_time()

    def _fields(self, entry: HistoryEntry) -> list[str | bytes]:
        fields: list[str | bytes] = ["entry", encode_entry(entry)]
        if entry.traceparent is not None:
            # A field of its own: earlier releases read the first alone.
            fields += ["traceparent", entry.traceparent]
        return fields

    def _is_about(self, fields: dict[bytes, bytes], batch_id: str) -> bool:
        return is_entry_about(fields.get(b"entry", b""), batch_id)

    def _item(self, fields: dict[bytes, bytes]) -> HistoryEntry:
        entry = decode_entry(fields[b"entry"])
        traced = fields.get(b"traceparent")
        return entry if traced is None else replace(entry, traceparent=traced.decode())
