"""The messages between the actors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from itertools import compress
from uuid import UUID

from aiokafka import ConsumerRecord

from bcs.domain.facts import Fact, recorded_under
from bcs.domain.history import REPORTED, FactsRecorded, HistoryEntry, Position, consumed_entry_id, facts_in
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary
from bcs.errors import UndecodableMessage
from bcs.supervision import Reply
from bcs.wire.dead_letters.encode import original_time_ms
from bcs.wire.decoding import DecodedEvent, EventDecoder
from bcs.wire.published import ConsumedMessage, Headers
from bcs.wire.tracing import TraceContext

# A megabyte has room for 300,000 empty headers, and each header is checked several times.
_MOST_HEADERS = 1000


def message_of(record: ConsumerRecord) -> ConsumedMessage:
    """A message as it was read, without the headers after the first thousand."""
    if not record.headers:  # the usual case
        return ConsumedMessage(
            record.topic,
            record.partition,
            record.offset,
            timestamp_ms=record.timestamp,
            key=record.key,
            value=record.value,
        )
    first_headers: Headers = record.headers[:_MOST_HEADERS]
    headers = first_headers
    unreadable: tuple[tuple[bytes, bytes | None], ...] = ()
    if first_headers and not all(name.isascii() for name, _ in first_headers):
        readable = [_is_text(name) for name, _ in first_headers]
        headers = tuple(compress(first_headers, readable))
        unreadable = tuple(
            (name.encode(errors="surrogateescape"), value)
            for (name, value), is_readable in zip(first_headers, readable, strict=True)
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
        headers_left_out=len(record.headers) - len(first_headers),
    )


def position_of(message: ConsumedMessage) -> Position:
    """The position of a message."""
    return Position(message.topic, message.partition, message.offset)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False  # see `TolerantRecords`
    return True


def decoded(decoder: EventDecoder, message: ConsumedMessage, event_time_ms: int) -> DecodedEvent:
    """The event in a message.

    :param event_time_ms: the time for an event that has no time, in milliseconds since 1970 UTC.
    :raises UndecodableMessage: there is no event, or the name of a header is not UTF-8.
    """
    event = decoder.decode(message.topic, message.value, event_time_ms)
    if message.unreadable_headers:
        name = message.unreadable_headers[0][0]
        problem = f"the name of a header is not UTF-8: {name[:40]!r}"
        raise UndecodableMessage("header_not_utf8", problem, event.batch_id, event.correlation_id)
    return event


def written_at_ms(record: ConsumerRecord) -> int | None:
    """When a message was first written, in milliseconds since 1970 UTC; None if unknown.

    A replayed message has a header with the time of its original, because the topic may give the replay a new time.
    """
    original_ms = original_time_ms(record.headers[:_MOST_HEADERS]) if record.headers else None
    if original_ms is not None:
        return original_ms
    # Kafka writes -1 if the producer gave no time.
    return record.timestamp if record.timestamp >= 0 else None


def consumed_entry(
    message: ConsumedMessage, event: DecodedEvent, at_us: int, trace: TraceContext | None = None
) -> FactsRecorded:
    """The history entry of a message. Each read of the message makes the same entry, except for the time.

    :param at_us: when BCS received the message, in microseconds since 1970 UTC.
    :param trace: the span that makes the entry.
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
        traceparent=trace.traceparent if trace else None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class DeliveryToken:
    """Identifies a consumed message; the intake gets the token back once the effect of the message is durable.

    Two tokens are never equal: a message that is read again has another token.

    :param correlation_id: of the event; None if it could not be read.
    :param event_id: of the event; None if the event has none.
    :param epoch: counts how often this process got the partition. The intake ignores a token of an earlier epoch.
    """

    message: ConsumedMessage
    event_type: str
    correlation_id: str | None
    epoch: int
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class HttpSource:
    """The source of facts that came over HTTP.

    :param entry_id: the id of the history entry, the same for every attempt.
    :param event_type: `REPORTED` or `INVALIDATED`.
    :param reason: an operator's reason; None for a phase report.
    :param trace: the context of the request.
    """

    entry_id: UUID
    correlation_id: str
    asked_by: str
    event_type: str = REPORTED
    reason: str | None = None
    _: KW_ONLY
    trace: TraceContext | None = None


@dataclass(frozen=True, slots=True)
class ApplyFacts:
    """To a batch's actor: make these facts durable.

    :param token: the Kafka message that the facts came from; None for facts that came over HTTP.
    :param source: the request that the facts came from; None for a Kafka message.
    :param reply: for the caller that waits; None if no caller waits.
    """

    batch_id: str
    facts: tuple[Fact, ...]
    token: DeliveryToken | None = None
    source: HttpSource | None = None
    reply: Reply[None] | None = None

    @property
    def weight(self) -> int:
        """The number of facts, as `bcs.domain.history.facts_in` counts them."""
        if len(self.facts) == 1:  # the usual case
            return facts_in(self.facts[0])
        return sum(map(facts_in, self.facts))

    @property
    def correlation_id(self) -> str | None:
        """The correlation id of the event or of the request."""
        origin = self.token or self.source
        return origin.correlation_id if origin else None

    def recorded_under(self, definitions: Mapping[str, str]) -> ApplyFacts:
        """The same facts, with the definitions under which they are recorded.

        :param definitions: see `bcs.domain.facts.recorded_under`.
        """
        under = recorded_under(self.facts, definitions)
        return replace(self, facts=(*self.facts, *under)) if under else self

    def entry(self, now_us: int, trace: TraceContext | None = None) -> FactsRecorded:
        """The history entry of these facts.

        :param now_us: the present time, in microseconds since 1970 UTC.
        :param trace: the span that makes the entry.
        """
        if self.token is None:
            assert self.source is not None  # noqa: S101 (facts come from Kafka or over HTTP)
            source = self.source
            return FactsRecorded(
                source.entry_id,
                self.batch_id,
                now_us,
                facts=self.facts,
                event_type=source.event_type,
                correlation_id=source.correlation_id,
                asked_by=source.asked_by,
                reason=source.reason,
                traceparent=trace.traceparent if trace else None,
            )
        token = self.token
        event = DecodedEvent(
            token.event_type,
            self.batch_id,
            correlation_id=token.correlation_id,
            facts=self.facts,
            event_id=token.event_id,
        )
        return consumed_entry(token.message, event, now_us, trace)


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """To a batch's actor: store a summary that was made for an answer, for the other processes.

    :param law: the law of the summary.
    """

    batch_id: str
    summary: BatchSummary
    law: CompletionLaw


BatchCommand = ApplyFacts | StoreSummary


@dataclass(frozen=True, slots=True)
class MessagesAcked:
    """To the intake: the effect of each of these messages is durable, or it is a durable dead letter."""

    tokens: tuple[DeliveryToken, ...]


@dataclass(frozen=True, slots=True)
class WriteEntries:
    """To the archive's actor: write these entries.

    :param weight: the sum over all entries, see `bcs.domain.history.weight`.
    :param reply: for the caller that waits until the entries are durable, in the archive or in its queue; None if no
        caller waits.
    """

    entries: tuple[HistoryEntry, ...]
    weight: int
    reply: Reply[None] | None = None


@dataclass(frozen=True, slots=True)
class OutboxGrew:
    """To the publisher: the outbox has new messages."""
