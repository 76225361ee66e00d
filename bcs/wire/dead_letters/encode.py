"""Encodes dead letters: the original message, the reason of its failure, and the number of attempts.

The reason is in the value, by the platform's contract, and also in headers like those of Spring Kafka, where tools look
for it. The original's own headers are kept. Headers that an earlier dead letter of the same message added are replaced,
so that a message that fails again and again has one set of them, with a count.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from pydantic_core import SchemaValidator, core_schema, from_json

from bcs.wire import topics
from bcs.wire.published import (
    SERVICE,
    ConsumedMessage,
    Headers,
    OutboundMessage,
    header_bytes,
    rfc3339,
)
from bcs.wire.tracing import TraceContext

LARGE_DEAD_LETTER_BYTES = 64 * 1024
"""How much of the original a dead letter keeps when it is too large for the broker."""

DEAD_LETTER_START = b'{"schema_version":1,"failed_event_envelope":'
"""The beginning of a dead letter's value. The original follows, byte for byte if it is a JSON object."""

RESOLUTION_FAILED: Final = "pipeline_resolution_failed"
"""Why a request became a dead letter."""

_PREFIX = "dlt-"
ORIGINAL_TOPIC = f"{_PREFIX}original-topic"
ORIGINAL_PARTITION = f"{_PREFIX}original-partition"
ORIGINAL_OFFSET = f"{_PREFIX}original-offset"
ORIGINAL_TIMESTAMP = f"{_PREFIX}original-timestamp-ms"
ORIGINAL_KEY = f"{_PREFIX}original-key"
BATCH_ID = f"{_PREFIX}batch-id"
REASON = f"{_PREFIX}reason"
EXCEPTION_CLASS = f"{_PREFIX}exception-class"
EXCEPTION_MESSAGE = f"{_PREFIX}exception-message"
ATTEMPTS = f"{_PREFIX}attempts"
FAILURES = f"{_PREFIX}failures"
FIRST_FAILURE = f"{_PREFIX}first-failure"
LAST_FAILURE = f"{_PREFIX}last-failure"
REPLAYED_FROM = f"{_PREFIX}replayed-from"
REPLAYED_BY = f"{_PREFIX}replayed-by"
TRACE = f"{_PREFIX}traceparent"
"""The span of BCS that published a dead letter or replayed its original. A `traceparent` is that of the original."""

OWN_HEADERS = frozenset(
    {
        *(ORIGINAL_TOPIC, ORIGINAL_PARTITION, ORIGINAL_OFFSET, ORIGINAL_TIMESTAMP, ORIGINAL_KEY, BATCH_ID),
        *(REASON, EXCEPTION_CLASS, EXCEPTION_MESSAGE, ATTEMPTS),
        *(FAILURES, FIRST_FAILURE, LAST_FAILURE, REPLAYED_FROM, REPLAYED_BY, TRACE),
    }
)
"""The headers that BCS adds; all other headers are the original's."""

_MESSAGE_CHARACTERS = 1000
_DETAIL_CHARACTERS = 4000
# A larger value is not parsed to find out whether it is a JSON object: that would block the event loop.
_PARSED_BYTES = 1024 * 1024
# Python's parser creates an object for each value of a document: 340,000 empty arrays took a tenth of a second.
_PARSED_BY_PYTHON_BYTES = 64 * 1024
_object = SchemaValidator(core_schema.typed_dict_schema({}))
# Other programs can write headers with our names, so their values are limited.
_COUNT_DIGITS = 6
_TIME_CHARACTERS = 40
_TIME_DIGITS = 14  # enough until the year 5138
_LARGE_KEY_BYTES = 1024
# Made once, because json.dumps() would make a new encoder for each document.
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def dead_letter(
    failed: ConsumedMessage,
    reason: str,
    detail: Mapping[str, Any],
    now: datetime,
    batch_id: str | None,
    *,
    limit_bytes: int | None = None,
    value_sha256: str | None = None,
    trace: TraceContext | None = None,
) -> OutboundMessage:
    """The dead letter of a consumed message, which keeps the bytes of the message.

    A JSON object is in the dead letter byte for byte (`value_bytes` long), anything else as base64. A second, truncated
    value with the source position, the digest and the first bytes is for a broker that refuses the first value.

    The dead letter's key is the batch id, else the original's key, else the original's position: a compacted topic
    accepts no message without a key.

    :param detail: attempts, error type and message.
    :param limit_bytes: the largest message that the broker accepts. A dead letter that would be larger gets the
        truncated value at once, and its original is not copied; None for no limit.
    :param value_sha256: the digest of the original's value, where the caller has computed it already.
    :param trace: the context of the failure, the same each time this dead letter is made.
    """
    raw = failed.value
    if raw is not None and value_sha256 is None:
        value_sha256 = hashlib.sha256(raw).hexdigest()
    metadata: dict[str, Any] = {
        "source_topic": failed.topic,
        "source_partition": failed.partition,
        "source_offset": failed.offset,
        "source_timestamp_ms": _written_at_ms(failed),
        "value_bytes": None if raw is None else len(raw),
        "value_sha256": value_sha256,
        **({"source_headers_left_out": failed.headers_left_out} if failed.headers_left_out else {}),
        **detail,
    }
    if "error_message" in metadata:
        metadata["error_message"] = str(metadata["error_message"])[:_DETAIL_CHARACTERS]
    position = _position(failed.topic, failed.partition, failed.offset)
    key = batch_id.encode() if batch_id is not None else position if failed.key is None else failed.key
    topic = topics.dead_letter_topic(failed.topic)
    truncated, headers = (
        _truncated_value(failed, reason, metadata, now),
        _headers(failed, reason, detail, now, batch_id, trace),
    )
    if truncated is None or limit_bytes is None or failed.size_bytes <= limit_bytes:
        value = _dead_letter_value(
            _envelope(raw), reason, {**metadata, **_key_as_text(failed.key), **_unreadable_headers(failed)}, now
        )
        message = OutboundMessage("dead_letter", topic, key, value, truncated=truncated, headers=headers)
        if limit_bytes is None or message.size_bytes <= limit_bytes:
            return message
    else:
        message = OutboundMessage("dead_letter", topic, key, b"", truncated=truncated, headers=headers)
    return as_truncated(message) or message


def unread_dead_letter(
    topic: str, partition: int, offset: int, reason: str, detail: Mapping[str, Any], now: datetime
) -> OutboundMessage:
    """The dead letter of a message that could not be read: it has only the message's position.

    A replay reads the message at this position, which may be readable by then.

    :param topic: the topic of the message.
    :param detail: error type and message.
    """
    metadata = {
        "source_topic": topic,
        "source_partition": partition,
        "source_offset": offset,
        "source_timestamp_ms": None,
        "source_key": None,
        "source_key_base64": None,
        **detail,
        "truncated": True,
        "unread": True,
        "note": "the original could not be read",
    }
    ours = {
        ORIGINAL_TOPIC: topic,
        ORIGINAL_PARTITION: str(partition),
        ORIGINAL_OFFSET: str(offset),
        **_why(reason, detail, (0, None), now),
    }
    return OutboundMessage(
        "dead_letter",
        topics.dead_letter_topic(topic),
        _position(topic, partition, offset),
        _dead_letter_value(_envelope(None), reason, metadata, now),
        headers=_encoded(ours),
    )


def as_truncated(message: OutboundMessage) -> OutboundMessage | None:
    """The smaller form of a dead letter that the broker refused as too large.

    It has the truncated value, our own headers and no large key.

    :returns: None where the message has no smaller form.
    """
    if message.truncated is None:
        return None
    own = tuple(header for header in message.headers if header[0] in OWN_HEADERS and header[0] != ORIGINAL_KEY)
    key = message.key
    if key is None or len(key) > _LARGE_KEY_BYTES:
        texts = {name: (value or b"").decode() for name, value in own}
        key = _position(texts[ORIGINAL_TOPIC], texts[ORIGINAL_PARTITION], texts[ORIGINAL_OFFSET])
    return replace(message, key=key, value=message.truncated, truncated=None, headers=own)


def failed_resolution(
    request: bytes,
    batch_id: str,
    pipeline: str,
    error: Exception,
    now: datetime,
    earlier: tuple[int, str | None] = (0, None),
    *,
    used_fields: bytes | None = None,
    trace: TraceContext | None = None,
) -> OutboundMessage:
    """The dead letter of a resolution that failed because of BCS, with the request's body as its original envelope.

    :param earlier: how often the request failed before, and when first, where it is a replay.
    :param used_fields: the fields of the body that BCS uses, as JSON; replaces a body that is too large for the broker.
    :param trace: the context of the request.
    """
    metadata = {
        "batch_id": batch_id,
        "requested_pipeline": pipeline,
        "error_type": type(error).__name__,
        "error_message": str(error),
    }
    value = _dead_letter_value(_envelope(request), RESOLUTION_FAILED, metadata, now)
    truncated = None
    if used_fields is not None and len(request) > LARGE_DEAD_LETTER_BYTES:
        truncated = _dead_letter_value(_envelope(used_fields), RESOLUTION_FAILED, metadata, now)
    headers = {
        ORIGINAL_TOPIC: topics.RESOLUTION,
        BATCH_ID: batch_id,
        **_why(RESOLUTION_FAILED, metadata, earlier, now),
        **_traced(trace),
    }
    topic = topics.dead_letter_topic(topics.RESOLUTION)
    return OutboundMessage(
        "dead_letter", topic, batch_id.encode(), value, truncated=truncated, headers=_encoded(headers)
    )


def earlier_failures(headers: Headers) -> tuple[int, str | None]:
    """How often a message became a dead letter before, and when first, from the headers that its replay added."""
    count, first = 0, None
    for name, value in headers:
        text = (value or b"").decode(errors="replace")
        if name == FAILURES and text.isascii() and text.isdigit() and len(text) <= _COUNT_DIGITS:
            count = int(text)
        elif name == FIRST_FAILURE and 0 < len(text) <= _TIME_CHARACTERS:
            first = text
    return count, first


def original_time_ms(headers: Headers) -> int | None:
    """When the original of a replayed message was written, in milliseconds since 1970 UTC; None for any other message.

    The timestamp of a replayed message itself can be that of the replay, depending on the topic.
    """
    given = dict(headers)
    value = given.get(ORIGINAL_TIMESTAMP)
    if REPLAYED_FROM in given and value is not None and value.isdigit() and len(value) <= _TIME_DIGITS:
        return int(value)
    return None


def original_headers(headers: Headers) -> Headers:
    """A message's own headers, without the headers that BCS adds."""
    return tuple(header for header in headers if header[0] not in OWN_HEADERS)


def _unreadable_headers(failed: ConsumedMessage) -> dict[str, Any]:
    # No Kafka client that we know can send such a header, so these headers are only in the value.
    if not failed.unreadable_headers:
        return {}
    return {
        "source_headers_unreadable": [
            {"name_base64": _base64(name), "value_base64": None if value is None else _base64(value)}
            for name, value in failed.unreadable_headers
        ]
    }


def _position(topic: str, partition: int | str, offset: int | str) -> bytes:
    return f"{topic}/{partition}/{offset}".encode()


def _written_at_ms(failed: ConsumedMessage) -> int:
    original_ms = original_time_ms(failed.headers)
    return failed.timestamp_ms if original_ms is None else original_ms


def _headers(
    failed: ConsumedMessage,
    reason: str,
    detail: Mapping[str, Any],
    now: datetime,
    batch_id: str | None,
    trace: TraceContext | None,
) -> Headers:
    ours = {
        ORIGINAL_TOPIC: failed.topic,
        ORIGINAL_PARTITION: str(failed.partition),
        ORIGINAL_OFFSET: str(failed.offset),
        ORIGINAL_TIMESTAMP: str(_written_at_ms(failed)),
        **({} if batch_id is None else {BATCH_ID: batch_id}),
        **_why(reason, detail, earlier_failures(failed.headers), now),
        **_traced(trace),
    }
    key: Headers = () if failed.key is None else ((ORIGINAL_KEY, failed.key),)
    return (*original_headers(failed.headers), *_encoded(ours), *key)


def _why(reason: str, detail: Mapping[str, Any], earlier: tuple[int, str | None], now: datetime) -> dict[str, str]:
    failures, first = earlier
    return {
        REASON: reason,
        EXCEPTION_CLASS: str(detail.get("error_type", "")),
        EXCEPTION_MESSAGE: str(detail.get("error_message", ""))[:_MESSAGE_CHARACTERS],
        ATTEMPTS: str(detail.get("attempts", 1)),
        FAILURES: str(failures + 1),
        FIRST_FAILURE: first or rfc3339(now),
        LAST_FAILURE: rfc3339(now),
    }


def _traced(trace: TraceContext | None) -> dict[str, str]:
    return {} if trace is None else {TRACE: trace.traceparent}


def _encoded(headers: Mapping[str, str]) -> Headers:
    # An error's message can hold half a surrogate pair, which UTF-8 can't.
    return tuple((name, text.encode(errors="backslashreplace")) for name, text in headers.items())


def _truncated_value(failed: ConsumedMessage, reason: str, metadata: Mapping[str, Any], now: datetime) -> bytes | None:
    raw, key = failed.value or b"", failed.key or b""
    large_key = len(key) > _LARGE_KEY_BYTES
    if len(raw) + header_bytes(failed.headers) <= LARGE_DEAD_LETTER_BYTES and not large_key:
        return None
    metadata = {**metadata, **_key_as_text(None if large_key else failed.key), "truncated": True}
    if len(raw) <= LARGE_DEAD_LETTER_BYTES:
        note = "too large for the broker: the original's headers and large key are left out"
        return _dead_letter_value(_envelope(failed.value), reason, {**metadata, "note": note}, now)
    beginning = _encode({"raw_base64": _base64(raw[:LARGE_DEAD_LETTER_BYTES]), "truncated": True})
    note = f"too large for the broker: the first {LARGE_DEAD_LETTER_BYTES} of {len(raw)} bytes are kept"
    return _dead_letter_value(beginning, reason, {**metadata, "note": note}, now)


def _key_as_text(key: bytes | None) -> dict[str, str | None]:
    if key is None:
        return {"source_key": None, "source_key_base64": None}
    return {"source_key": key.decode(errors="replace"), "source_key_base64": _base64(key)}


def _dead_letter_value(envelope: bytes, reason: str, metadata: Mapping[str, Any], now: datetime) -> bytes:
    rest = {
        "dlq_reason": reason,
        "timestamp": rfc3339(now),
        "service": SERVICE,
        "additional_metadata": metadata,
    }
    return DEAD_LETTER_START + envelope + b"," + _encode(rest)[1:]


def _envelope(raw: bytes | None) -> bytes:
    if raw is not None and len(raw) <= _PARSED_BYTES and _is_json_object(raw):
        return raw
    return _encode({"raw_base64": None if raw is None else _base64(raw)})


def _is_json_object(raw: bytes) -> bool:
    def refuse(constant: str) -> None:
        # Python accepts NaN and Infinity, which are not JSON: other services could not parse such a dead letter.
        raise ValueError(constant)

    if len(raw) > _PARSED_BY_PYTHON_BYTES:
        return _is_large_json_object(raw)
    try:
        return isinstance(json.loads(raw.decode(), parse_constant=refuse), dict)
    except (ValueError, RecursionError):
        return False


def _is_large_json_object(raw: bytes) -> bool:
    """Like `_is_json_object`, but lone surrogates and deep nesting do not count as JSON."""
    try:
        _object.validate_json(raw)
        if b"NaN" in raw or b"Infinity" in raw:
            from_json(raw, allow_inf_nan=False)
    except ValueError:
        return False
    return True


def _encode(document: Mapping[str, Any]) -> bytes:
    # ASCII only, because a lone surrogate in an error message could not be encoded otherwise.
    return _to_json(document).encode()


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
