"""Messages that no topic promises, and the dead letters that they have to become."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from aiokafka import ConsumerRecord

from tests.support.events import Event

_LARGE_BYTES = 700_000  # a third more as base64, and with that still no more than the broker takes
_START = b'{"schema_version":1,"failed_event_envelope":'

Spoil = Callable[[Event, Random], bytes | None]


@dataclass(frozen=True)
class Letter:
    """What a dead letter says of the message that it is about."""

    position: tuple[str, int, int]  # topic, partition, offset
    key: bytes | None
    value: bytes | None
    reason: str
    attempts: int
    error_type: str


def with_data(event: Event, **changes: object) -> bytes:
    """The event's document with other data."""
    document = json.loads(event.value)
    document["data"].update(changes)
    return json.dumps(document).encode()


SPOILT: dict[str, tuple[str, Spoil]] = {
    "invalid JSON": ("not_json", lambda event, chance: event.value[: chance.randrange(1, len(event.value))]),
    "invalid UTF-8": ("not_utf8", lambda event, _: event.value.replace(b'"tests"', b'"t\xe9sts"')),
    "another schema": ("invalid_event", lambda _, chance: b'{"type": "greeting", "number": %d}' % chance.randrange(9)),
    "null value": ("null_value", lambda _event, _chance: None),
    "no bytes": ("not_json", lambda _event, _chance: b""),
    "wrong types": ("invalid_event", lambda event, chance: with_data(event, batch_id=chance.random(), entity_id=[])),
    "an array": ("not_an_object", lambda event, _: b"[" + event.value + b"]"),
    "noise": ("not_utf8", lambda _, chance: b"\xff" + chance.randbytes(1_000)),
    "huge noise": ("not_utf8", lambda _, chance: b"\xff" + chance.randbytes(_LARGE_BYTES - 1)),
    "huge object": ("invalid_event", lambda event, _: with_data(event, timestamp="x" * _LARGE_BYTES)),
}
"""Kinds of malformed messages: the reason that their letter gives, and how one is made of a good event."""


def read_letter(record: ConsumerRecord) -> Letter:
    """Take a dead letter apart, its original to the byte."""
    document: dict[str, Any] = json.loads(record.value)
    about = document["additional_metadata"]
    assert record.topic == f"{about['source_topic']}.DLQ"
    assert "truncated" not in about
    assert about["error_message"]
    key = about["source_key_base64"]
    return Letter(
        (about["source_topic"], about["source_partition"], about["source_offset"]),
        None if key is None else base64.b64decode(key),
        _original(record.value, document["failed_event_envelope"], about["value_bytes"]),
        document["dlq_reason"],
        about["attempts"],
        about["error_type"],
    )


def _original(letter: bytes, envelope: dict[str, Any], size: int | None) -> bytes | None:
    if envelope.keys() == {"raw_base64"}:
        raw = envelope["raw_base64"]
        return None if raw is None else base64.b64decode(raw, validate=True)
    # A JSON object stands in its letter as it came, white space and all.
    assert letter.startswith(_START)
    return letter[len(_START) :][:size]
