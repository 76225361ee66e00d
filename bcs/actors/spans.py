"""What the spans of the actors are about; attributes are named as in OpenTelemetry's conventions for messaging."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Self

from bcs.actors.messages import ApplyFacts, DeliveryToken
from bcs.domain.history import HistoryEntry
from bcs.observability.tracing import Attributes, Span, SpanDescription, SpanKind, Tracer
from bcs.storage.ports import LeasedMessage
from bcs.wire.dead_letters.encode import TRACE
from bcs.wire.published import Headers, OutboundMessage
from bcs.wire.tracing import TRACEPARENT, TRACESTATE, TraceContext, trace_from, trace_in, trace_of_message

BATCH_ID, CORRELATION_ID = "bcs.batch.id", "bcs.correlation_id"
KAFKA = {"messaging.system": "kafka"}


def about_commit(group: Sequence[ApplyFacts], consumer_group: str) -> SpanDescription:
    """A commit of the facts of one batch, from Kafka or over HTTP.

    :param group: the commands, at least one.
    """
    tokens = [command.token for command in group if command.token]
    attributes: dict[str, str | int] = {BATCH_ID: group[0].batch_id}
    correlation_ids = {command.correlation_id for command in group}
    if len(correlation_ids) == 1 and None not in correlation_ids:
        attributes[CORRELATION_ID] = correlation_ids.pop() or ""
    causes = [source.trace for command in group if (source := command.source) and source.trace]
    if not tokens:
        return SpanDescription(name="commit", kind=SpanKind.INTERNAL, attributes=attributes, causes=causes)
    topics = {token.message.topic for token in tokens}
    attributes |= {
        **KAFKA,
        "messaging.operation.type": "process",
        "messaging.operation.name": "commit",
        "messaging.consumer.group.name": consumer_group,
        **({"messaging.destination.name": topics.pop()} if len(topics) == 1 else {}),
    }
    if len(tokens) > 1:
        attributes["messaging.batch.message_count"] = len(tokens)
    else:
        message = tokens[0].message
        attributes["messaging.destination.partition.id"] = str(message.partition)
        attributes["messaging.kafka.offset"] = message.offset
        if tokens[0].event_id is not None:
            attributes["messaging.message.id"] = tokens[0].event_id
    # An iterator, because a tracer takes no more causes than a span can have links.
    producers = (cause for token in tokens for cause in _causes_of(token))
    return SpanDescription(
        name="commit", kind=SpanKind.CONSUMER, attributes=attributes, causes=chain(causes, producers)
    )


def _causes_of(token: DeliveryToken) -> Iterator[TraceContext]:
    """The producer of a message, and its replay."""
    message = token.message
    if producer := trace_of_message(message.headers, message.value):
        yield producer
    if replay := trace_in(message.headers, TRACE):
        yield replay


def about_archive(entries: Sequence[HistoryEntry]) -> SpanDescription:
    """A write of entries to the archive.

    :param entries: at least one.
    """
    batch_ids = {entry.batch_id for entry in entries}
    attributes: dict[str, str | int] = {"db.system.name": "postgresql", "db.operation.name": "INSERT"}
    if len(entries) > 1:
        attributes["db.operation.batch.size"] = len(entries)
    if len(batch_ids) == 1:
        attributes[BATCH_ID] = batch_ids.pop()
    causes = (cause for entry in entries if (cause := trace_from(entry.traceparent)))
    return SpanDescription(name="archive", kind=SpanKind.CLIENT, attributes=attributes, causes=causes)


def queued() -> Attributes:
    """PostgreSQL did not take the entries, and the queue before it did."""
    return {"bcs.archive.queued": True}


class PublishSpans:
    """The spans of messages that are published together, one for each. At its end all of them have ended."""

    __slots__ = ("_spans", "_tracer")

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._spans: dict[tuple[str, str], Span] = {}

    def headers(self, entry: LeasedMessage) -> Headers:
        """Begin the span of a message that is about to be sent, unless it has one.

        :returns: the headers to send, with the context of the span.
        """
        message = entry.message
        if not self._tracer.enabled:
            return message.headers  # the usual case
        span = self._spans.get(entry.place) or self._tracer.span(_about_publishing, message)
        if span.context is None:
            return message.headers
        self._spans[entry.place] = span
        if _is_dead_letter(message):
            return _replaced(message.headers, ((TRACE, span.context.traceparent.encode()),))
        return _replaced(message.headers, span.context.kafka_headers)

    def end(self, entry: LeasedMessage, problem: BaseException | None = None) -> None:
        """End the span of a message."""
        span = self._spans.pop(entry.place, None) if self._spans else None
        if span:
            if problem is not None:
                span.fail(type(problem).__name__)
            span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Whether these messages were published is unknown.
        for span in self._spans.values():
            span.fail("unknown")
            span.end()
        self._spans.clear()


def _about_publishing(message: OutboundMessage) -> SpanDescription:
    attributes: dict[str, str | int] = {
        **KAFKA,
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": message.topic,
        "messaging.message.body.size": len(message.value),
    }
    if message.key is not None:
        attributes["messaging.kafka.message.key"] = message.key.decode(errors="replace")
    cause = trace_in(message.headers, TRACE if _is_dead_letter(message) else TRACEPARENT)
    return SpanDescription(
        name=f"publish {message.topic}",
        kind=SpanKind.PRODUCER,
        attributes=attributes,
        causes=[cause] if cause else [],
    )


def _is_dead_letter(message: OutboundMessage) -> bool:
    return message.kind == "dead_letter"


def _replaced(headers: Headers, by: tuple[tuple[str, bytes], ...]) -> Headers:
    # A header of the original in a dead letter has another name, and stays.
    names = {TRACEPARENT, TRACESTATE} if by[0][0] == TRACEPARENT else {by[0][0]}
    return (*(header for header in headers if header[0] not in names), *by)
