"""Writes the facts in Kafka to the archive again, while services write the facts of new messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from bcs.actors.messages import consumed_entry, decoded, message_of, written_at_ms
from bcs.domain.history import FactsRecorded, weight
from bcs.domain.times import LATEST_US
from bcs.errors import StoreRefused, UndecodableMessage
from bcs.ops.rebuild.essay_limit import EssayLimit
from bcs.ops.rebuild.reading import OrderedTopicReader, TimedRecord
from bcs.storage.redis.stored_batches import StoredBatches
from bcs.wire.dead_letters.encode import original_time_ms
from bcs.wire.decoding import EventDecoder

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive

# A large statement would delay the statements of the services.
_FACTS_PER_WRITE = 300
_WRITE_SECONDS = 60.0


@dataclass(slots=True, kw_only=True)
class RebuildStats:
    """Counts of a rebuild so far.

    :param messages: the processed messages.
    :param facts: the facts that were written to the archive.
    :param undecodable: the messages that the service made dead letters of.
    :param without_facts: the messages that change nothing, such as the start of a phase.
    :param refused: the messages whose facts can never be stored.
    """

    messages: int = 0
    facts: int = 0
    batches: set[str] = field(default_factory=set)
    undecodable: int = 0
    without_facts: int = 0
    refused: int = 0


@dataclass(slots=True, kw_only=True)
class Rebuilder:
    """Writes the facts of messages to the archive.

    :param stored: the batches in Redis. The copy of each written batch is invalidated, because it may lack facts.
    :param notify: called after each portion.
    :param now_us: the time of the start, in microseconds since 1970 UTC.
    :param max_skew_us: an event is left out if its time is later than its Kafka record by more than this, because the
        service refused this event.
    :param essay_limit: finds the events that the service refused because the batch had no room; None for no limit.
    """

    decoder: EventDecoder
    archive: PostgresArchive
    stored: StoredBatches
    notify: Callable[[], None]
    now_us: int
    max_skew_us: int
    stats: RebuildStats = field(default_factory=RebuildStats)
    essay_limit: EssayLimit | None = None
    _entries: list[FactsRecorded] = field(default_factory=list, init=False)
    _messages: int = field(default=0, init=False)
    _facts: int = field(default=0, init=False)

    async def rebuild(self, reader: OrderedTopicReader) -> None:
        """Write the facts of all messages. A cancellation leaves complete portions, and a repetition changes nothing.

        :raises KafkaUnavailable: Kafka does not answer.
        :raises StoreUnavailable: the archive or Redis does not answer.
        """
        async for portion in reader.portions():
            for timed in portion:
                await self._take(timed)
                if self._facts >= _FACTS_PER_WRITE:
                    await self._write_pending()
        await self._write_pending()

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
        # The time of a replay is unknown: the service may have refused the event at first, and accepted the replay.
        replayed = original_time_ms(record.headers) is not None
        read_at_us = self.now_us if replayed else min(self.now_us, timed.at_ms * 1000)
        if event.at_us > read_at_us + self.max_skew_us:
            self.stats.undecodable += 1
            return
        # The time at which the service read the event is lost. The time of the Kafka record is the nearest.
        at_us = min(timed.at_ms * 1000, LATEST_US)
        entry = consumed_entry(message, event, at_us)
        if self.essay_limit and not await self.essay_limit.has_room_for(entry, self._write_pending):
            self.stats.undecodable += 1
            return
        self._entries.append(entry)
        self._facts += weight(entry)

    async def _write_pending(self) -> None:
        entries, self._entries = self._entries, []
        batches = {entry.batch_id for entry in entries}
        # The archive may have more facts than Redis now, so the copies in Redis are invalidated in any case.
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
            await self.archive.write(entries, deadline_seconds=_WRITE_SECONDS)
        except StoreRefused:
            if len(entries) == 1:
                self.stats.refused += 1
                return
            # One entry makes the whole statement fail. Halving the entries finds this entry.
            middle = len(entries) // 2
            await self._write(entries[:middle])
            await self._write(entries[middle:])
        else:
            self.stats.facts += sum(len(entry.facts) for entry in entries)


def _event_time_ms(timed: TimedRecord) -> int:
    event_time_ms = written_at_ms(timed.record)
    return timed.at_ms if event_time_ms is None else event_time_ms
