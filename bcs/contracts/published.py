"""What BCS publishes: PhaseSkippedV1 and dead letters, ready for the outbox."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from bcs.contracts import topics

SERVICE = "batch_conductor_service"
LARGE_LETTER_BYTES = 64 * 1024
"""How much of the original a letter keeps when it is too large for the broker."""

# Any fixed namespace serves; it must never change, or a repeated request would announce under other ids.
_NAMESPACE = uuid.UUID("6f0ff5e0-4a52-5b8f-9d33-2b1a7c9f5d10")
# json.dumps() would make one anew for each document.
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_quoted = json.encoder.encode_basestring_ascii
_is_canonical_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_LETTER_START = b'{"schema_version":1,"failed_event_envelope":'


@dataclass(frozen=True, slots=True)
class OutboundMessage:
    """A message for Kafka.

    :param kind: `phase_skipped` or `dead_letter`.
    :param reduced: a smaller value that stands in when the broker finds the value too large.
    """

    kind: str
    topic: str
    key: bytes | None
    value: bytes
    reduced: bytes | None = None


@dataclass(frozen=True, slots=True)
class ConsumedMessage:
    """A message as it came from Kafka.

    :param timestamp_ms: the Kafka record's own time.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


def phases_skipped(
    batch_id: str, phases: Iterable[str], correlation_id: str, now: datetime
) -> tuple[OutboundMessage, ...]:
    """PhaseSkippedV1 for each pruned phase.

    The event ids are derived from request, batch and phase, so that a repeated request announces nothing new.

    :param correlation_id: the request's own. Where it is no UUID, the envelope, which takes only UUIDs, carries one
        that is derived from it.
    """
    when = _rfc3339(now)
    return tuple(_phase_skipped(batch_id, phase, correlation_id, when) for phase in phases)


def _phase_skipped(batch_id: str, phase: str, correlation_id: str, when: str) -> OutboundMessage:
    # As json.dumps() writes a list; it is part of the ids for good.
    identity = f"[{_quoted(correlation_id)}, {_quoted(batch_id)}, {_quoted(phase)}]"
    envelope = {
        "event_id": str(uuid.uuid5(_NAMESPACE, identity)),
        "event_type": topics.PHASE_SKIPPED,
        "event_timestamp": when,
        "source_service": SERVICE,
        "schema_version": 1,
        "correlation_id": as_uuid(correlation_id),
        "data_schema_uri": None,
        "data": {
            "event": "batch.phase.skipped",
            "batch_id": batch_id,
            "phase_name": phase,
            "skip_reason": "already_completed",
            "storage_id": None,
            "correlation_id": correlation_id,
            "metadata": {
                "entity_id": batch_id,
                "entity_type": "batch",
                "timestamp": when,
                "event": "batch.phase.skipped",
            },
        },
        "metadata": {"partition_key": batch_id},
    }
    return OutboundMessage("phase_skipped", topics.PHASE_SKIPPED, batch_id.encode(), to_json(envelope))


def dead_letter(
    failed: ConsumedMessage, reason: str, detail: Mapping[str, Any], now: datetime, batch_id: str | None
) -> OutboundMessage:
    """The dead letter of a consumed message, which keeps its bytes intact.

    A JSON object stands in the letter byte for byte as it came (`value_bytes` long); anything else as base64. A second,
    reduced value with the source position, the digest and the first bytes is for a broker that refuses the first.

    :param detail: attempts, error type and message.
    """
    raw = failed.value
    metadata: dict[str, Any] = {
        "source_topic": failed.topic,
        "source_partition": failed.partition,
        "source_offset": failed.offset,
        "source_timestamp_ms": failed.timestamp_ms,
        "source_key": None if failed.key is None else failed.key.decode(errors="replace"),
        "source_key_base64": None if failed.key is None else _base64(failed.key),
        "value_bytes": None if raw is None else len(raw),
        "value_sha256": None if raw is None else hashlib.sha256(raw).hexdigest(),
        **detail,
    }
    start = _envelope(raw)
    reduced = None
    if raw is not None and len(raw) > LARGE_LETTER_BYTES:
        beginning = _encode({"raw_base64": _base64(raw[:LARGE_LETTER_BYTES]), "truncated": True})
        note = f"too large for the broker: the first {LARGE_LETTER_BYTES} of {len(raw)} bytes are kept"
        reduced = _letter(beginning, reason, {**metadata, "truncated": True, "note": note}, now)
    key = failed.key if batch_id is None else batch_id.encode()
    topic = topics.dead_letter_topic(failed.topic)
    return OutboundMessage("dead_letter", topic, key, _letter(start, reason, metadata, now), reduced)


def failed_resolution(request: bytes, batch_id: str, pipeline: str, error: Exception, now: datetime) -> OutboundMessage:
    """The dead letter of a resolution that failed on our side, with the request's body as its original envelope."""
    metadata = {
        "batch_id": batch_id,
        "requested_pipeline": pipeline,
        "error_type": type(error).__name__,
        "error_message": str(error),
    }
    topic = topics.dead_letter_topic(topics.RESOLUTION)
    value = _letter(_envelope(request), "pipeline_resolution_failed", metadata, now)
    return OutboundMessage("dead_letter", topic, batch_id.encode(), value)


def as_uuid(correlation_id: str) -> str:
    """The correlation id itself if it is a UUID, else one that is always the same for it."""
    if _is_canonical_uuid(correlation_id):
        return correlation_id
    try:
        return str(uuid.UUID(correlation_id))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, correlation_id))


def _letter(envelope: bytes, reason: str, metadata: Mapping[str, Any], now: datetime) -> bytes:
    rest = {
        "dlq_reason": reason,
        "timestamp": _rfc3339(now),
        "service": SERVICE,
        "additional_metadata": metadata,
    }
    return _LETTER_START + envelope + b"," + _encode(rest)[1:]


def _envelope(raw: bytes | None) -> bytes:
    if raw is not None and _is_json_object(raw):
        return raw
    return _encode({"raw_base64": None if raw is None else _base64(raw)})


def _is_json_object(raw: bytes) -> bool:
    def refuse(constant: str) -> None:
        # Python reads NaN and Infinity, JSON has neither: a letter with one could not be read by other services.
        raise ValueError(constant)

    try:
        return isinstance(json.loads(raw.decode(), parse_constant=refuse), dict)
    except (ValueError, RecursionError):
        return False


def _encode(document: Mapping[str, Any]) -> bytes:
    # ASCII only, because a lone surrogate in an error message could not be encoded otherwise.
    return _to_json(document).encode()


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
