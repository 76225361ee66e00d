"""The messages that BCS publishes, ready for the outbox, and PhaseSkippedV1."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime

from pydantic_core import from_json, to_json

from bcs.wire import topics
from bcs.wire.documents import PhaseSkippedV1Envelope
from bcs.wire.tracing import TraceContext

SERVICE = "batch_conductor_service"
# Any fixed namespace is good. It must never change, or a repeated request would announce with other event ids.
_NAMESPACE = uuid.UUID("6f0ff5e0-4a52-5b8f-9d33-2b1a7c9f5d10")
_quoted = json.encoder.encode_basestring_ascii
_is_canonical_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


Headers = tuple[tuple[str, bytes | None], ...]
"""Names can occur twice, and values can be null."""


@dataclass(frozen=True, slots=True)
class OutboundMessage:
    """A message for Kafka.

    :param kind: `phase_skipped` or `dead_letter`.
    :param truncated: a smaller value that is sent, with our own headers only, when the broker refuses the message as
        too large; None where there is none.
    :param event_id: the id of the event in an announcement: the same for a repeated request. None in other messages,
        and in messages that were read from the outbox.
    :param waits_since_ms: since when the message has waited, in milliseconds since 1970 UTC, where it waited already
        before its present entry in the outbox was made; else None.
    """

    kind: str
    topic: str
    key: bytes | None
    value: bytes
    _: KW_ONLY
    truncated: bytes | None = None
    headers: Headers = ()
    event_id: str | None = field(default=None, compare=False)
    waits_since_ms: int | None = field(default=None, compare=False)

    @property
    def size_bytes(self) -> int:
        """The size of value, key and headers, without Kafka's overhead."""
        return len(self.value) + len(self.key or b"") + header_bytes(self.headers)

    @property
    def correlation_id(self) -> str | None:
        """The correlation id of the message, or of the original in a dead letter; None where there is none."""
        try:
            document = from_json(self.value)
            correlation_id = document.get("failed_event_envelope", document).get("correlation_id")
        except (ValueError, AttributeError):
            return None
        return correlation_id if isinstance(correlation_id, str) else None


@dataclass(frozen=True, slots=True)
class ConsumedMessage:
    """A message as it came from Kafka.

    :param timestamp_ms: the Kafka record's timestamp.
    :param headers: the first headers; only replays use them.
    :param unreadable_headers: the headers whose names are not UTF-8, with the bytes of their names.
    :param headers_left_out: how many more headers the message had.
    """

    topic: str
    partition: int
    offset: int
    _: KW_ONLY
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    unreadable_headers: tuple[tuple[bytes, bytes | None], ...] = ()
    headers_left_out: int = 0

    @property
    def size_bytes(self) -> int:
        """The size of value, key and headers, without Python's overhead."""
        size = len(self.value or b"") + len(self.key or b"")
        if self.unreadable_headers:
            size += sum(len(name) + len(value or b"") for name, value in self.unreadable_headers)
        return size + header_bytes(self.headers) if self.headers else size


def header_bytes(headers: Headers) -> int:
    """The size of the headers' names and values."""
    return sum(len(name.encode()) + len(value or b"") for name, value in headers)


def phases_skipped(
    batch_id: str, phases: Iterable[str], correlation_id: str, now: datetime, trace: TraceContext | None = None
) -> tuple[OutboundMessage, ...]:
    """PhaseSkippedV1 for each pruned phase.

    The event ids are derived from request, batch and phase, so that a repeated request announces nothing new.

    :param correlation_id: the request's. Where it is not a UUID, the event carries a UUID that is derived from it,
        because the platform's model accepts only UUIDs.
    :param trace: the trace context, for the headers and for the envelope's metadata, its place on the platform.
    """
    when = rfc3339(now)
    return tuple(_phase_skipped(batch_id, phase, correlation_id, when, trace) for phase in phases)


def _phase_skipped(
    batch_id: str, phase: str, correlation_id: str, when: str, trace: TraceContext | None
) -> OutboundMessage:
    # The same text as json.dumps() of a list. It must never change, because the event ids depend on it.
    identity = f"[{_quoted(correlation_id)}, {_quoted(batch_id)}, {_quoted(phase)}]"
    correlation_uuid = as_uuid(correlation_id)
    event_id = str(uuid.uuid5(_NAMESPACE, identity))
    envelope: PhaseSkippedV1Envelope = {
        "event_id": event_id,
        "event_type": topics.PHASE_SKIPPED,
        "event_timestamp": when,
        "source_service": SERVICE,
        "schema_version": 1,
        "correlation_id": correlation_uuid,
        "data_schema_uri": None,
        "data": {
            "event": "batch.phase.skipped",
            "batch_id": batch_id,
            "phase_name": phase,
            "skip_reason": "already_completed",
            "storage_id": None,
            "correlation_id": correlation_uuid,
            "metadata": {
                "entity_id": batch_id,
                "entity_type": "batch",
                "timestamp": when,
                "event": "batch.phase.skipped",
            },
        },
        "metadata": {"partition_key": batch_id, **(trace.fields if trace else {})},
    }
    return OutboundMessage(
        "phase_skipped",
        topics.PHASE_SKIPPED,
        batch_id.encode(),
        to_json(envelope),
        headers=trace.kafka_headers if trace else (),
        event_id=event_id,
    )


def announced_ms(value: bytes) -> int | None:
    """When an announcement was made, in milliseconds since 1970 UTC; None where the value has no valid time."""
    try:
        announced = datetime.fromisoformat(from_json(value)["event_timestamp"])
    except (ValueError, TypeError, KeyError):
        return None
    return int(announced.timestamp() * 1000)


def as_uuid(correlation_id: str) -> str:
    """The correlation id itself if it is a UUID, else a UUID that is derived from it."""
    if _is_canonical_uuid(correlation_id):
        return correlation_id
    try:
        return str(uuid.UUID(correlation_id))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, correlation_id))


def rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
