"""Projects what Kafka has into the record again, beside services that do the same with what comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from bcs.actors.messages import consumed_entry, decoded, message_of, written_at_ms
from bcs.domain.history import FactsRecorded, weight
from bcs.errors import StoreRefused, UndecodableMessage
from bcs.ops.rebuild.crowding import Crowding
from bcs.ops.rebuild.reading import OrderedTopicReader, TimedRecord
from bcs.storage.redis.stored_batches import StoredBatches
from bcs.wire.dead_letters.encode import original_time_ms
from bcs.wire.decoding import LATEST_US, EventDecoder

if TYPE_CHECKING:
    # It takes the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive

# A statement holds up the services' own as long as it takes.
_FACTS_PER_WRITE = 300
_WRITE_SECONDS = 60.0


@dataclass(slots=True, kw_only=True)
class RebuildStats:
    """What became of the messages so far.

    :param messages: that were dealt with.
    :param facts: that the record has now.
    :param undecodable: messages that became dead letters when they came.
    :param without_facts: messages that change nothing, such as that a phase has begun.
    :param refused: messages whose facts can't be stored, now or later.
    """

    messages: int = 0
    facts: int = 0
    batches: set[str] = field(default_factory=set)
    undecodable: int = 0
    without_facts: int = 0
    refused: int = 0


@dataclass(slots=True, kw_only=True)
class Rebuilder:
    """Writes the facts of messages to the record.

    :param stored: is told of each batch that Redis may lack something.
    :param notify: is called after each portion.
    :param now_us: microseconds since 1970 UTC.
    :param max_skew_us: what claims to be later than it was written, by more than this, is not projected: the service
        refused it when it came.
    :param crowding: tells what the service refused since a batch had no room; None where a batch always has.
    """

    decoder: EventDecoder
    record: PostgresArchive
    stored: StoredBatches
    notify: Callable[[], None]
    now_us: int
    max_skew_us: int
    stats: RebuildStats = field(default_factory=RebuildStats)
    crowding: Crowding | None = None
    _entries: list[FactsRecorded] = field(default_factory=list, init=False)
    _messages: int = field(default=0, init=False)
    _facts: int = field(default=0, init=False)

    async def rebuild(self, reader: OrderedTopicReader) -> None:
        """Project all of it. Cancellation leaves whole portions; to do all of it again changes nothing.

        :raises KafkaUnavailable: Kafka does not answer.
        :raises StoreUnavailable: the record does not, or Redis.
        """
        async for portion in reader.portions():
            for timed in portion:
                await self._take(timed)
                if self._facts >= _FACTS_PER_WRITE:
                    await self._keep()
        await self._keep()

    async def _take(self, timed: TimedRecord) -> None:
        record, message = timed.record, message_of(timed.record)
        self._messages += 1
        try:
            event = decoded(self.decoder, message, _event_time_ms(timed))
        except UndecodableMessage:
            self.stats.undecodable += 1
            return
        if not event.facts:
            self.stats.without_facts += 1
            return
        # The time of a replay is not known: what was refused at first may have been taken then.
        replayed = original_time_ms(record.headers) is not None
        read_at_us = self.now_us if replayed else min(self.now_us, timed.at_ms * 1000)
        if event.at_us > read_at_us + self.max_skew_us:
            self.stats.undecodable += 1
            return
        # Nobody knows any more when it became known here; when it was written is as near as can be.
        at_us = min(timed.at_ms * 1000, LATEST_US)
        entry = consumed_entry(message, event, at_us)
        if self.crowding and not await self.crowding.admits(entry, self._keep):
            self.stats.undecodable += 1
            return
        self._entries.append(entry)
        self._facts += weight(entry)

    async def _keep(self) -> None:
        entries, self._entries = self._entries, []
        batches = {entry.batch_id for entry in entries}
        # Whatever happens: what the record may have now, Redis must not be taken to have too.
        with anyio.CancelScope(shield=True):
            try:
                await self._write(entries)
            finally:
                await self.stored.invalidate(batches)
        self.stats.batches |= batches
        self.stats.messages += self._messages
        self._messages = self._facts = 0
        self.notify()

    async def _write(self, entries: Sequence[FactsRecorded]) -> None:
        if not entries:
            return
        try:
            await self.record.write(entries, deadline_seconds=_WRITE_SECONDS)
        except StoreRefused:
            if len(entries) == 1:
                self.stats.refused += 1
                return
            # One of them spoils the statement for all.
            middle = len(entries) // 2
            await self._write(entries[:middle])
            await self._write(entries[middle:])
        else:
            self.stats.facts += sum(len(entry.facts) for entry in entries)


def _event_time_ms(timed: TimedRecord) -> int:
    event_time_ms = written_at_ms(timed.record)
    return timed.at_ms if event_time_ms is None else event_time_ms
