"""Decodes dead letters: from their headers where they have any, else from the value."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bcs.errors import UnreadableDeadLetter
from bcs.supervision.errors import describe
from bcs.wire import topics
from bcs.wire.dead_letters import encode as names
from bcs.wire.dead_letters.encode import DEAD_LETTER_START, original_headers
from bcs.wire.published import SERVICE, Headers
from bcs.wire.tracing import TraceContext, trace_in

REPLAY_MARKER_PREFIX = b"replayed:"
"""The prefix of a replay marker's key. The marker is in the partition of its dead letter; like a tombstone, it has no
value."""

PURGE_PREFIX = b"purged:"
"""The prefix of a purge marker's key. The marker replaces a deletion where the broker can't delete records."""

ERASED_HEADER = "bcs-erased"
"""The header of a tombstone for the dead letters of an erased batch. Its key is the batch's id, as theirs is, so that a
compacted topic removes them."""

_OFFSET_DIGITS = 19
# Other programs can write these headers, so their values are limited.
_OPERATOR_CHARACTERS = 200


@dataclass(frozen=True, slots=True, order=True)
class DeadLetterPosition:
    """The place of a dead letter.

    :param topic: the topic of the dead letter, not of its original.
    """

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead letter with its original.

    :param source_partition: the original's partition; None for a resolution, which came over HTTP.
    :param source_timestamp_ms: the Kafka timestamp of the original; None where it had none.
    :param value: the original's value; None for an original without a value, and for a truncated dead letter.
    :param beginning: the first bytes of the original's value, where the dead letter is truncated.
    :param truncated: True if the dead letter does not have all of the original; only the source topic may have it.
    :param value_sha256: the digest of the original's value; None when it had no value, or was never read.
    :param failures: how often the original became a dead letter, this time included.
    :param unread: the original could not be read when the dead letter was written; only its position is known.
    :param service: the service that wrote the dead letter; `unknown` where the dead letter does not name one.
    :param producer: the service that sent the original; None where the original does not name one.
    :param trace: the span that published the dead letter; None without tracing.
    """

    position: DeadLetterPosition
    timestamp: str
    reason: str
    source_topic: str
    source_partition: int | None
    source_offset: int | None
    source_timestamp_ms: int | None
    batch_id: str | None
    key: bytes | None
    value: bytes | None
    beginning: bytes | None
    truncated: bool
    value_sha256: str | None
    headers: Headers
    error_type: str
    error_message: str
    attempts: int
    failures: int
    first_failure: str
    last_failure: str
    unread: bool
    service: str
    producer: str | None
    trace: TraceContext | None

    @property
    def is_ours(self) -> bool:
        """False for a dead letter that another service wrote to the same topic."""
        return self.service == SERVICE

    @property
    def is_resolution(self) -> bool:
        """True if the original came over HTTP, and not from Kafka."""
        return self.source_topic == topics.RESOLUTION


@dataclass(frozen=True, slots=True)
class Replay:
    """A message is the replayed original of a dead letter.

    :param operator: who replayed it, as far as the replay says it.
    """

    dead_letter: DeadLetterPosition
    operator: str


def read_replay(headers: Headers) -> Replay | None:
    """What the headers of a message say about its replay; None for a message that is none."""
    given = dict(headers)
    position = position_in((given.get(names.REPLAYED_FROM) or b"").decode(errors="replace"))
    if position is None:
        return None
    operator = (given.get(names.REPLAYED_BY) or b"").decode(errors="replace")
    return Replay(position, operator[:_OPERATOR_CHARACTERS] or "unknown")


def position_in(text: str) -> DeadLetterPosition | None:
    """The position of a dead letter in a text such as `topic/0/15`; None where it has none."""
    if not text:
        return None  # the usual case
    topic, _, rest = text.partition("/")
    partition, _, offset = rest.partition("/")
    if topic not in topics.DEAD_LETTERS or not all(_is_number(digits) for digits in (partition, offset)):
        return None
    return DeadLetterPosition(topic, int(partition), int(offset))


def _is_number(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) <= _OFFSET_DIGITS


def replay_marker_key(position: DeadLetterPosition) -> bytes:
    """The key of the replay marker for a dead letter."""
    return REPLAY_MARKER_PREFIX + str(position.offset).encode()


def replayed_offset(key: bytes | None, value: bytes | None) -> int | None:
    """The offset of the dead letter that a replay marker is about; None when the message is not a replay marker."""
    return _offset_behind(REPLAY_MARKER_PREFIX, key, value)


def purge_key(last: int) -> bytes:
    """The key of the purge marker for all of a partition up to an offset."""
    return PURGE_PREFIX + str(last).encode()


def purged_offset(key: bytes | None, value: bytes | None) -> int | None:
    """The offset up to which a purge marker's partition is purged; None when the message is not a purge marker."""
    return _offset_behind(PURGE_PREFIX, key, value)


def is_erasing_tombstone(key: bytes | None, value: bytes | None, headers: Headers) -> bool:
    """True if the dead letters with the same key before this message are erased."""
    return value is None and key is not None and any(name == ERASED_HEADER for name, _ in headers)


def _offset_behind(prefix: bytes, key: bytes | None, value: bytes | None) -> int | None:
    if value is not None or key is None or not key.startswith(prefix):
        return None
    digits = key.removeprefix(prefix)
    return int(digits) if digits.isdigit() and len(digits) <= _OFFSET_DIGITS else None


def read_dead_letter(
    position: DeadLetterPosition, key: bytes | None, value: bytes | None, headers: Headers
) -> DeadLetter:
    """Decode a dead letter.

    :raises UnreadableDeadLetter: BCS did not write this message.
    """
    try:
        document = json.loads(value or b"")
        metadata = document["additional_metadata"]
        given = {name: (text or b"").decode(errors="replace") for name, text in headers}
        source_topic = given.get(names.ORIGINAL_TOPIC) or metadata.get("source_topic")
        if source_topic is None:
            source_topic = position.topic.removesuffix(".DLQ")
        timestamp = str(document["timestamp"])
        datetime.fromisoformat(timestamp)
        source_key = metadata.get("source_key_base64")
        truncated = bool(metadata.get("truncated", False))
        return DeadLetter(
            position=position,
            timestamp=timestamp,
            reason=str(document["dlq_reason"]),
            source_topic=source_topic,
            source_partition=metadata.get("source_partition"),
            source_offset=metadata.get("source_offset"),
            source_timestamp_ms=_time(metadata.get("source_timestamp_ms")),
            batch_id=given.get(names.BATCH_ID) or _text(metadata.get("batch_id")),
            key=None if source_key is None else base64.b64decode(source_key),
            value=None if truncated else _original(value or b"", document, metadata),
            beginning=_beginning(document) if truncated else None,
            truncated=truncated,
            value_sha256=metadata.get("value_sha256"),
            headers=original_headers(headers),
            error_type=str(metadata.get("error_type", "")),
            error_message=str(metadata.get("error_message", "")),
            attempts=int(metadata.get("attempts", 1)),
            failures=max(1, names.earlier_failures(headers)[0]),
            first_failure=given.get(names.FIRST_FAILURE, timestamp),
            last_failure=given.get(names.LAST_FAILURE, timestamp),
            unread=bool(metadata.get("unread", False)),
            service=_text(document.get("service")) or "unknown",
            producer=_text(document["failed_event_envelope"].get("source_service")),
            trace=trace_in(headers, names.TRACE),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableDeadLetter(str(position), describe(error)) from None


def _original(dead_letter: bytes, document: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes | None:
    envelope = document["failed_event_envelope"]
    if "value_sha256" not in metadata:
        # From a resolution or another service: without a digest, only the meaning of the JSON can be restored.
        if envelope.keys() == {"raw_base64"}:
            raw = envelope["raw_base64"]
            return None if raw is None else base64.b64decode(raw, validate=True)
        return json.dumps(envelope).encode()
    digest = metadata["value_sha256"]
    if digest is None:
        return None
    # A JSON original can look like the form for an original that is not JSON. The digest shows which one it is.
    verbatim = dead_letter[len(DEAD_LETTER_START) : len(DEAD_LETTER_START) + metadata["value_bytes"]]
    if hashlib.sha256(verbatim).hexdigest() == digest:
        return verbatim
    raw = base64.b64decode(envelope["raw_base64"], validate=True)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError("the digest of the original does not match")
    return raw


def _beginning(document: Mapping[str, Any]) -> bytes | None:
    raw = document["failed_event_envelope"].get("raw_base64")
    return None if raw is None else base64.b64decode(raw, validate=True)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _time(timestamp_ms: int | None) -> int | None:
    return timestamp_ms if timestamp_ms is not None and timestamp_ms >= 0 else None
