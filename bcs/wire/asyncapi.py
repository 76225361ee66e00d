"""The description of what goes over Kafka: JSON Schemas of all messages, and an AsyncAPI 3.0 document."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from bcs import __version__
from bcs.errors import UndecodableMessage
from bcs.wire import topics
from bcs.wire.dead_letters import encode
from bcs.wire.dead_letters.decode import ERASED_HEADER, PURGE_PREFIX, REPLAY_MARKER_PREFIX
from bcs.wire.dead_letters.encode import dead_letter, failed_resolution
from bcs.wire.documents import EventDeadLetter, PhaseSkippedV1Envelope, ResolutionDeadLetter
from bcs.wire.events import (
    BatchEssaysRegistered,
    CJAssessmentCompletedV1,
    ELSBatchPhaseOutcomeV1,
    Envelope,
    SpellcheckPhaseCompletedV1,
)
from bcs.wire.producing import EventType, Sample, sample_events
from bcs.wire.published import ConsumedMessage, Headers, OutboundMessage, phases_skipped
from bcs.wire.tracing import TRACEPARENT, TRACESTATE

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NUMBER = {"type": "string", "pattern": "^[0-9]+$"}
_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time"}

DEAD_LETTER_HEADERS: Final[Mapping[str, Schema]] = {
    encode.ORIGINAL_TOPIC: _TEXT | {"description": "The topic of the original."},
    encode.ORIGINAL_PARTITION: _NUMBER | {"description": "The partition of the original; not of a request."},
    encode.ORIGINAL_OFFSET: _NUMBER | {"description": "The offset of the original; not of a request."},
    encode.ORIGINAL_TIMESTAMP: {"type": "string", "pattern": "^-?[0-9]+$"}
    | {"description": "The Kafka timestamp of the original; not where the original could not be read."},
    encode.ORIGINAL_KEY: _TEXT | {"description": "The key of the original, if it had one that is not too large."},
    encode.BATCH_ID: _TEXT | {"description": "The id of the batch, where it is known."},
    encode.REASON: _TEXT | {"description": "As `dlq_reason` in the value."},
    encode.EXCEPTION_CLASS: _TEXT | {"description": "The type of the error."},
    encode.EXCEPTION_MESSAGE: _TEXT | {"description": "The text of the error, of a limited length."},
    encode.ATTEMPTS: _NUMBER | {"description": "How often BCS tried to process the original this time."},
    encode.FAILURES: _NUMBER | {"description": "How often the original became a dead letter, with its replays."},
    encode.FIRST_FAILURE: _TEXT | {"description": "When the original became a dead letter for the first time."},
    encode.LAST_FAILURE: _TIME | {"description": "When this dead letter was made."},
    encode.TRACE: _TEXT | {"description": "The span that published the dead letter, where tracing is on."},
}
"""The headers that BCS adds to a dead letter. The original's own headers are kept beside them."""

_ALWAYS = (
    encode.ORIGINAL_TOPIC,
    *(encode.REASON, encode.EXCEPTION_CLASS, encode.EXCEPTION_MESSAGE, encode.ATTEMPTS),
    *(encode.FAILURES, encode.FIRST_FAILURE, encode.LAST_FAILURE),
)
_OF_REPLAYS: Mapping[str, Schema] = {
    encode.REPLAYED_FROM: _TEXT | {"description": "The place of the dead letter that was replayed."},
    encode.REPLAYED_BY: _TEXT | {"description": "The operator who replayed it."},
    encode.FAILURES: _TEXT | {"description": "How often the message became a dead letter before."},
    encode.FIRST_FAILURE: _TEXT | {"description": "When that happened for the first time."},
    encode.ORIGINAL_TIMESTAMP: _TEXT | {"description": "When the original was written, in ms since 1970 UTC."},
    encode.TRACE: _TEXT | {"description": "The span that replayed the message, where tracing is on."},
}
_TRACE: Mapping[str, Schema] = {
    TRACEPARENT: _TEXT | {"description": "W3C trace context."},
    TRACESTATE: _TEXT | {"description": "W3C trace context; only with a `traceparent`."},
}
CONSUMED_HEADERS: Final[Schema] = {
    "type": "object",
    "description": "The platform's producers send no headers. BCS reads a trace context, and a message that "
    "`bcs dlq replay` put back has the others.",
    "properties": {**_TRACE, **_OF_REPLAYS},
}

_NO_VALUE: Schema = {"type": "null"}
_EXAMPLE_TIME = datetime(2026, 1, 31, 8, tzinfo=UTC)
_EXAMPLE_ID = uuid.UUID("550e8400-e29b-41d4-a716-446655440000")
_EXAMPLE_BATCH = "batch_12345"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A kind of message on a topic.

    :param document: the type of the value; None for a message without a value.
    :param key: the JSON Schema of the key.
    :param headers: the JSON Schema of the headers; None for a message without own headers.
    :param examples: makes messages, with their headers.
    """

    name: str
    summary: str
    document: Any
    mode: JsonSchemaMode = "serialization"
    key: Schema
    headers: Schema | None = None
    examples: Callable[[], Iterable[tuple[bytes, Headers]]] = field(default=tuple)


def _samples(event_type: EventType) -> Callable[[], Iterable[tuple[bytes, Headers]]]:
    def make() -> Iterable[tuple[bytes, Headers]]:
        about = Sample(batch_id=_EXAMPLE_BATCH, completed=["essay_1"], failed=["essay_2"])
        for event in sample_events(event_type, about, now=_EXAMPLE_TIME, new_id=lambda: _EXAMPLE_ID):
            yield json.dumps(event).encode(), ()

    return make


def _skipped() -> Iterable[tuple[bytes, Headers]]:
    made = phases_skipped(_EXAMPLE_BATCH, ["spellcheck"], str(_EXAMPLE_ID), _EXAMPLE_TIME)
    return [(message.value, message.headers) for message in made]


def _dead_events() -> Iterable[tuple[bytes, Headers]]:
    for value, error in (
        (
            b'{"data": {"batch_id": "batch_12345"}}',
            UndecodableMessage("invalid_event", "data.entity_id: Field required"),
        ),
        (b"no JSON", UndecodableMessage("not_json", "Invalid JSON: expected ident at line 1 column 2")),
    ):
        failed = ConsumedMessage(
            topics.SPELLCHECK_COMPLETED, 3, 1234, timestamp_ms=1_769_846_400_000, key=b"essay_1", value=value
        )
        detail = {"attempts": 1, "error_type": type(error).__name__, "error_message": error.detail}
        yield _of(dead_letter(failed, error.reason, detail, _EXAMPLE_TIME, None))


def _dead_resolutions() -> Iterable[tuple[bytes, Headers]]:
    request = {"batch_id": _EXAMPLE_BATCH, "requested_pipeline": "nlp", "correlation_id": str(_EXAMPLE_ID)}
    error = ValueError("the stored batch can't be read")
    made = failed_resolution(json.dumps(request).encode(), _EXAMPLE_BATCH, "nlp", error, _EXAMPLE_TIME)
    yield _of(made)


def _of(message: OutboundMessage) -> tuple[bytes, Headers]:
    return message.value, message.headers


def _event(event_type: EventType, model: Any, summary: str, key: str) -> Message:
    return Message(
        name=event_type.value,
        summary=summary,
        document=Envelope[model],
        mode="validation",
        key=_TEXT | {"description": key},
        headers=CONSUMED_HEADERS,
        examples=_samples(event_type),
    )


def _dead(name: str, summary: str, document: Any, examples: Callable[[], Iterable[tuple[bytes, Headers]]]) -> Message:
    headers = {
        "type": "object",
        "description": "The original's own headers are there, too.",
        "properties": dict(DEAD_LETTER_HEADERS),
        "required": list(_ALWAYS),
    }
    key = _TEXT | {"description": "The batch's id, else the key of the original, else the place of the original."}
    return Message(name=name, summary=summary, document=document, key=key, headers=headers, examples=examples)


def _marker(name: str, prefix: bytes, summary: str) -> Message:
    key = {"type": "string", "pattern": f"^{prefix.decode()}[0-9]+$"}
    return Message(name=name, summary=summary, document=None, key=key)


_DEAD_EVENT = _dead("EventDeadLetter", "A consumed message that BCS could not use", EventDeadLetter, _dead_events)
_DEAD_RESOLUTION = _dead(
    "ResolutionDeadLetter", "A request that failed because of BCS", ResolutionDeadLetter, _dead_resolutions
)
_MARKERS = (
    _marker(
        "ReplayMarker",
        REPLAY_MARKER_PREFIX,
        "Says that the dead letter at the offset in the key was replayed; in the same partition as the dead letter",
    ),
    _marker(
        "PurgeMarker",
        PURGE_PREFIX,
        "Says that all dead letters of the partition up to the offset in the key are gone, where the broker can't "
        "delete records",
    ),
    Message(
        name="ErasedBatch",
        summary="Removes the dead letters of an erased batch from a compacted topic",
        document=None,
        key=_TEXT | {"description": "The key of the dead letters that are erased."},
        headers={"type": "object", "properties": {ERASED_HEADER: _TEXT}, "required": [ERASED_HEADER]},
    ),
)

MESSAGES: Final[Mapping[str, Sequence[Message]]] = {
    topics.SPELLCHECK_COMPLETED: [
        _event(
            EventType.SPELLCHECK_COMPLETED,
            SpellcheckPhaseCompletedV1,
            "The spellcheck of an essay ended, or made progress",
            "The essay's id in practice. BCS does not depend on it.",
        )
    ],
    topics.CJ_COMPLETED: [
        _event(
            EventType.CJ_COMPLETED,
            CJAssessmentCompletedV1,
            "The comparative judgement of a batch ended",
            "The batch's or the job's id in practice. BCS does not depend on it.",
        )
    ],
    topics.PHASE_OUTCOME: [
        _event(
            EventType.PHASE_OUTCOME,
            ELSBatchPhaseOutcomeV1,
            "A phase of a batch ended",
            "The batch's id in practice. BCS does not depend on it.",
        )
    ],
    topics.ESSAYS_REGISTERED: [
        _event(
            EventType.ESSAYS_REGISTERED,
            BatchEssaysRegistered,
            "The essays of a batch were registered",
            "The batch's id in practice. BCS does not depend on it.",
        )
    ],
    topics.PHASE_SKIPPED: [
        Message(
            name="PhaseSkippedV1",
            summary="A phase need not run, because it is complete",
            document=PhaseSkippedV1Envelope,
            key=_TEXT | {"description": "The batch's id."},
            headers={"type": "object", "description": "Where there is a trace.", "properties": dict(_TRACE)},
            examples=_skipped,
        )
    ],
    **{topics.dead_letter_topic(source): [_DEAD_EVENT, *_MARKERS] for source in topics.CONSUMED},
    topics.dead_letter_topic(topics.RESOLUTION): [_DEAD_RESOLUTION, *_MARKERS],
}
"""The messages of each topic. On a dead-letter topic the first is the dead letter, and the others have no value."""


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the name of a member."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def value_schema(topic: str) -> Schema:
    """The JSON Schema of the values of a topic; dead-letter topics also have messages without a value."""
    message = MESSAGES[topic][0]
    schema = TypeAdapter(message.document).json_schema(mode=message.mode, schema_generator=_Untitled)
    return {"$schema": _DIALECT, "$id": f"urn:bcs:schema:{topic}", **schema}


def asyncapi_document() -> dict[str, Any]:
    """The AsyncAPI document about all topics."""
    messages = {message.name: message for on_topic in MESSAGES.values() for message in on_topic}
    documents = [message for message in messages.values() if message.document is not None]
    schemas, definitions = TypeAdapter.json_schemas(
        [(message.name, message.mode, TypeAdapter(message.document)) for message in documents],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    payloads = {name: schema for (name, _), schema in schemas.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Batch Conductor Service",
            "version": __version__,
            "description": (
                "The events that BCS reads and publishes. All values are UTF-8 JSON. Unknown fields of an event are "
                "ignored. What the schema of an event refuses becomes a dead letter. So does an outcome of a phase "
                "that neither the pipeline file nor the platform has, and an event that is too large, too far in the "
                "future, or about too many essays. Of the ways to write a time, the schemas have the platform's; BCS "
                "reads some more."
            ),
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "kafka:9092",
                "protocol": "kafka",
                "description": "`BCS_KAFKA_BOOTSTRAP_SERVERS`, with the security of `BCS_KAFKA_SECURITY_PROTOCOL`.",
            }
        },
        "channels": {topic: _channel(topic, on_topic) for topic, on_topic in MESSAGES.items()},
        "operations": dict(_operation(topic, on_topic) for topic, on_topic in MESSAGES.items()),
        "components": {
            "messages": {name: _message(message, payloads.get(name, _NO_VALUE)) for name, message in messages.items()},
            "schemas": definitions["$defs"],
        },
    }


def _channel(topic: str, on_topic: Sequence[Message]) -> dict[str, Any]:
    if topic in topics.CONSUMED:
        description = "BCS reads this topic."
    elif topic == topics.PHASE_SKIPPED:
        description = "BCS announces pruned phases on this topic."
    else:
        description = "BCS writes dead letters to this topic, and `bcs dlq` reads them, replays them and removes them."
    return {
        "address": topic,
        "description": description,
        "messages": {message.name: {"$ref": f"#/components/messages/{message.name}"} for message in on_topic},
        "bindings": {"kafka": {"topic": topic, "bindingVersion": "0.5.0"}},
    }


def _operation(topic: str, on_topic: Sequence[Message]) -> tuple[str, dict[str, Any]]:
    action = "receive" if topic in topics.CONSUMED else "send"
    return f"{action}.{topic}", {
        "action": action,
        "summary": on_topic[0].summary,
        "channel": {"$ref": f"#/channels/{topic}"},
        "messages": [{"$ref": f"#/channels/{topic}/messages/{message.name}"} for message in on_topic],
    }


def _message(message: Message, payload: Schema) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": message.name,
        "summary": message.summary,
        "contentType": "application/json",
        "payload": payload,
        "bindings": {"kafka": {"key": message.key, "bindingVersion": "0.5.0"}},
    }
    if message.headers:
        described["headers"] = message.headers
    if message.document is not None and message.name not in (_DEAD_EVENT.name, _DEAD_RESOLUTION.name):
        described["correlationId"] = {"location": "$message.payload#/correlation_id"}
    examples = [
        {"payload": json.loads(value), **({"headers": _as_text(headers)} if headers else {})}
        for value, headers in message.examples()
    ]
    if examples:
        described["examples"] = examples
    return described


def _as_text(headers: Headers) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in headers}
