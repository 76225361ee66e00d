"""What the actors say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from uuid import UUID

from aiokafka import ConsumerRecord

from bcs.domain.facts import Fact
from bcs.domain.history import REPORTED, FactsRecorded, HistoryEntry, Position, consumed_entry_id, facts_in
from bcs.errors import UndecodableMessage
from bcs.supervision import Reply
from bcs.wire.dead_letters.encode import original_time_ms
from bcs.wire.decoding import DecodedEvent, EventDecoder
from bcs.wire.published import ConsumedMessage, Headers

# A megabyte has room for 300,000 empty ones, and each is looked at several times.
_MOST_HEADERS = 1000


def message_of(record: ConsumerRecord) -> ConsumedMessage:
    """A message as it was read, but for headers beyond the first thousand."""
    given: Headers = record.headers[:_MOST_HEADERS]
    headers = given
    unreadable: tuple[tuple[bytes, bytes | None], ...] = ()
    if given and not all(name.isascii() for name, _ in given):
        readable = [_is_text(name) for name, _ in given]
        headers = tuple(compress(given, readable))
        unreadable = tuple(
            (name.encode(errors="surrogateescape"), value)
            for (name, value), is_readable in zip(given, readable, strict=True)
            if not is_readable
        )
    return ConsumedMessage(
        record.topic,
        record.partition,
        record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=headers,
        unreadable_headers=unreadable,
        headers_left_out=len(record.headers) - len(given),
    )


def position_of(message: ConsumedMessage) -> Position:
    """Where a message lies."""
    return Position(message.topic, message.partition, message.offset)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False  # see `TolerantRecords`
    return True


def decoded(decoder: EventDecoder, message: ConsumedMessage, event_time_ms: int) -> DecodedEvent:
    """The event in a message.

    :param event_time_ms: the message's time where the event has none, in milliseconds since 1970 UTC.
    :raises UndecodableMessage: there is none, or the message has headers that nobody can name.
    """
    event = decoder.decode(message.topic, message.value, event_time_ms)
    if message.unreadable_headers:
        name = message.unreadable_headers[0][0]
        problem = f"the name of a header is not UTF-8: {name[:40]!r}"
        raise UndecodableMessage("header_not_utf8", problem, event.batch_id, event.correlation_id)
    return event


def written_at_ms(record: ConsumerRecord) -> int | None:
    """When a message was first written, in milliseconds since 1970 UTC; None where nothing says so.

    One that was replayed carries the time of its original, since a topic may stamp it anew.
    """
    original_ms = original_time_ms(record.headers[:_MOST_HEADERS]) if record.headers else None
    if original_ms is not None:
        return original_ms
    # Kafka writes -1 where a producer gave no time.
    return record.timestamp if record.timestamp >= 0 else None


def consumed_entry(message: ConsumedMessage, event: DecodedEvent, at_us: int) -> FactsRecorded:
    """What the history is to say of a message: the same, but for the time, whoever reads it and however often.

    :param at_us: when it became known, in microseconds since 1970 UTC.
    """
    return FactsRecorded(
        consumed_entry_id(message.topic, message.partition, message.offset, message.timestamp_ms),
        event.batch_id,
        at_us,
        facts=event.facts,
        event_type=event.event_type,
        correlation_id=event.correlation_id,
        event_id=event.event_id,
        position=Position(message.topic, message.partition, message.offset),
    )


@dataclass(frozen=True, slots=True)
class DeliveryToken:
    """Proof of a consumed message, to be handed back once its effect is durable.

    :param correlation_id: of the envelope, where it could be read.
    :param event_id: of the envelope, where it has one.
    :param epoch: which of our ownerships of the partition it was read in; a token of an older one is worthless.
    """

    message: ConsumedMessage
    event_type: str
    correlation_id: str | None
    epoch: int
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """What is known of a report that came over HTTP.

    :param report_id: of its own, the same however often it is tried.
    """

    report_id: UUID
    correlation_id: str
    asked_by: str


@dataclass(frozen=True, slots=True)
class ApplyFacts:
    """To a batch's actor: make these facts durable.

    :param token: the Kafka message that they came from.
    :param report: what they came with otherwise.
    :param reply: who waits for it.
    """

    batch_id: str
    facts: tuple[Fact, ...]
    token: DeliveryToken | None = None
    report: PhaseReport | None = None
    reply: Reply[None] | None = None

    @property
    def weight(self) -> int:
        """As how many facts it counts."""
        if len(self.facts) == 1:  # as most have
            return facts_in(self.facts[0])
        return sum(map(facts_in, self.facts))

    @property
    def correlation_id(self) -> str | None:
        """Of the event or the report."""
        came_with = self.token or self.report
        return came_with.correlation_id if came_with else None

    def entry(self, now_us: int) -> FactsRecorded:
        """What the history is to say of it.

        :param now_us: microseconds since 1970 UTC.
        """
        if self.token is None:
            assert self.report is not None  # noqa: S101 (facts come from Kafka or over HTTP)
            report = self.report
            return FactsRecorded(
                report.report_id,
                self.batch_id,
                now_us,
                facts=self.facts,
                event_type=REPORTED,
                correlation_id=report.correlation_id,
                asked_by=report.asked_by,
            )
        token = self.token
        event = DecodedEvent(
            token.event_type,
            self.batch_id,
            correlation_id=token.correlation_id,
            facts=self.facts,
            event_id=token.event_id,
        )
        return consumed_entry(token.message, event, now_us)


@dataclass(frozen=True, slots=True)
class MessageAcked:
    """To the intake: the effect of this message is durable, or it is a durable dead letter."""

    token: DeliveryToken


@dataclass(frozen=True, slots=True)
class WriteEntries:
    """To the archive: keep these in the record.

    :param weight: of all entries, see `bcs.domain.history.weight`.
    :param reply: who waits until they are durable, in the record or in the queue before it.
    """

    entries: tuple[HistoryEntry, ...]
    weight: int
    reply: Reply[None] | None = None


@dataclass(frozen=True, slots=True)
class OutboxGrew:
    """To the publisher: there is something to publish."""
