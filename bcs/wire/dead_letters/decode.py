"""Dead letters as they are read back: by headers where there are any, else by what stands in the value."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bcs.errors import UnreadableDeadLetter
from bcs.wire import topics
from bcs.wire.dead_letters import encode as names
from bcs.wire.dead_letters.encode import DEAD_LETTER_START, original_headers
from bcs.wire.published import SERVICE, Headers

MARK_PREFIX = b"replayed:"
"""Begins the key of a mark, which lies in the partition of its letter and has no value, as a tombstone has none."""

PURGE_PREFIX = b"purged:"
"""Begins the key of a mark that stands for a deletion, where the broker can't delete records."""

_OFFSET_DIGITS = 19


@dataclass(frozen=True, slots=True, order=True)
class DeadLetterPosition:
    """Where a letter lies.

    :param topic: of the letter, not of its original.
    """

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A letter, and the original in it.

    :param source_partition: where the original lay; None for a resolution, which came over HTTP.
    :param source_timestamp_ms: Kafka's time of the original; None where it had none.
    :param value: None for an original without one, and where the letter has only its beginning.
    :param beginning: of the value, where the letter has only that.
    :param truncated: the letter does not have all of the original; it can only be had where it lay.
    :param value_sha256: of the original; None when it had no value, or was never read.
    :param failures: how often the original became a letter, this time included.
    :param unread: the original could not be read when the letter was written; only its position is known.
    :param service: that wrote the letter; `unknown` where the letter does not say.
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

    @property
    def is_ours(self) -> bool:
        """False for a letter that another service wrote on a topic that both use."""
        return self.service == SERVICE

    @property
    def is_resolution(self) -> bool:
        """Whether the original came over HTTP, and not from Kafka."""
        return self.source_topic == topics.RESOLUTION


def mark_key(position: DeadLetterPosition) -> bytes:
    """The key of the mark that says that a letter was replayed."""
    return MARK_PREFIX + str(position.offset).encode()


def marked_offset(key: bytes | None, value: bytes | None) -> int | None:
    """The offset of the letter that a message in its partition marks as replayed; None when it is no mark."""
    return _offset_behind(MARK_PREFIX, key, value)


def purge_key(last: int) -> bytes:
    """The key of the mark that says that everything in its partition up to an offset is purged."""
    return PURGE_PREFIX + str(last).encode()


def purged_offset(key: bytes | None, value: bytes | None) -> int | None:
    """The offset up to which a mark says that everything in its partition is purged; None when it is no such mark."""
    return _offset_behind(PURGE_PREFIX, key, value)


def _offset_behind(prefix: bytes, key: bytes | None, value: bytes | None) -> int | None:
    if value is not None or key is None or not key.startswith(prefix):
        return None
    digits = key.removeprefix(prefix)
    return int(digits) if digits.isdigit() and len(digits) <= _OFFSET_DIGITS else None


def read_dead_letter(
    position: DeadLetterPosition, key: bytes | None, value: bytes | None, headers: Headers
) -> DeadLetter:
    """Read a letter.

    :raises UnreadableLetter: it is none of ours.
    """
    try:
        document = json.loads(value or b"")
        about = document["additional_metadata"]
        given = {name: (text or b"").decode(errors="replace") for name, text in headers}
        source_topic = given.get(names.ORIGINAL_TOPIC) or about.get("source_topic")
        if source_topic is None:
            source_topic = position.topic.removesuffix(".DLQ")
        timestamp = str(document["timestamp"])
        datetime.fromisoformat(timestamp)
        source_key = about.get("source_key_base64")
        truncated = bool(about.get("truncated", False))
        return DeadLetter(
            position=position,
            timestamp=timestamp,
            reason=str(document["dlq_reason"]),
            source_topic=source_topic,
            source_partition=about.get("source_partition"),
            source_offset=about.get("source_offset"),
            source_timestamp_ms=_time(about.get("source_timestamp_ms")),
            batch_id=given.get(names.BATCH_ID) or _text(about.get("batch_id")),
            key=None if source_key is None else base64.b64decode(source_key),
            value=None if truncated else _original(value or b"", document, about),
            beginning=_beginning(document) if truncated else None,
            truncated=truncated,
            value_sha256=about.get("value_sha256"),
            headers=original_headers(headers),
            error_type=str(about.get("error_type", "")),
            error_message=str(about.get("error_message", "")),
            attempts=int(about.get("attempts", 1)),
            failures=max(1, names.earlier_failures(headers)[0]),
            first_failure=given.get(names.FIRST_FAILURE, timestamp),
            last_failure=given.get(names.LAST_FAILURE, timestamp),
            unread=bool(about.get("unread", False)),
            service=_text(document.get("service")) or "unknown",
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableDeadLetter(str(position), f"{type(error).__name__}: {error}") from None


def _original(dead_letter: bytes, document: Mapping[str, Any], about: Mapping[str, Any]) -> bytes | None:
    envelope = document["failed_event_envelope"]
    if "value_sha256" not in about:
        # A resolution's, or from another service: what it means counts, for more is not known.
        if envelope.keys() == {"raw_base64"}:
            raw = envelope["raw_base64"]
            return None if raw is None else base64.b64decode(raw, validate=True)
        return json.dumps(envelope).encode()
    digest = about["value_sha256"]
    if digest is None:
        return None
    # An original can look like what stands for one that is no JSON: the digest tells them apart.
    verbatim = dead_letter[len(DEAD_LETTER_START) : len(DEAD_LETTER_START) + about["value_bytes"]]
    if hashlib.sha256(verbatim).hexdigest() == digest:
        return verbatim
    raw = base64.b64decode(envelope["raw_base64"], validate=True)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError("the original's digest is another one")
    return raw


def _beginning(document: Mapping[str, Any]) -> bytes | None:
    raw = document["failed_event_envelope"].get("raw_base64")
    return None if raw is None else base64.b64decode(raw, validate=True)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _time(timestamp_ms: int | None) -> int | None:
    return timestamp_ms if timestamp_ms is not None and timestamp_ms >= 0 else None
