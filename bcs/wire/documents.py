"""The documents that BCS publishes over Kafka, as types: JSON Schemas are made from them."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import ConfigDict, Field, WithJsonSchema, with_config

from bcs.errors import DeadLetterReason
from bcs.wire import topics

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict  # pydantic takes no other

TypeT = TypeVar("TypeT", bound=type)

Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Uuid = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
Base64 = Annotated[str, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
Service = Annotated[str, WithJsonSchema({"type": "string", "const": "batch_conductor_service"})]
Position = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


def described(document: TypeT) -> TypeT:
    """Take the texts below the members of a document into its description.

    pydantic's `use_attribute_docstrings` does the same and parses the whole module again for each class: the first
    request for the description of the API took more than a second.
    """
    return with_config(ConfigDict(json_schema_extra=_add_texts))(document)


def _add_texts(schema: dict[str, Any], document: type) -> None:
    for base in (document, *getattr(document, "__orig_bases__", ())):
        for member, text in _texts_in(base.__module__).get(base.__qualname__, {}).items():
            schema["properties"][member].setdefault("description", text)


@cache
def _texts_in(module: str) -> dict[str, dict[str, str]]:
    """The texts below the members of all classes in a module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {each.name: dict(_texts_below(each)) for each in tree.body if isinstance(each, ast.ClassDef)}


def _texts_below(document: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for member, below in pairwise(document.body):
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield member.target.id, inspect.cleandoc(text.value)


@described
class SkippedMetadata(TypedDict):
    """The batch that the event is about, and when."""

    entity_id: str
    entity_type: Literal["batch"]
    timestamp: Timestamp
    event: Literal["batch.phase.skipped"]


@described
class PhaseSkippedV1(TypedDict):
    """A phase of a batch that need not run, because it is complete."""

    event: Literal["batch.phase.skipped"]
    batch_id: str
    phase_name: str
    skip_reason: Literal["already_completed"]
    storage_id: None
    correlation_id: Uuid
    """That of the request. Where it is not a UUID, one that is derived from it."""
    metadata: SkippedMetadata


@described
class PhaseSkippedV1Envelope(TypedDict):
    """The platform's envelope around `PhaseSkippedV1`."""

    event_id: Uuid
    """The same for each copy of an announcement, and for a repeated request."""
    event_type: Annotated[str, WithJsonSchema({"type": "string", "const": topics.PHASE_SKIPPED})]
    event_timestamp: Timestamp
    source_service: Service
    schema_version: Literal[1]
    correlation_id: Uuid
    data_schema_uri: None
    data: PhaseSkippedV1
    metadata: Mapping[str, str]
    """`partition_key`, which is the batch's id, and `traceparent` and `tracestate` where the request had them."""


@described
class RawOriginal(TypedDict):
    """An original that is not a JSON object."""

    raw_base64: Base64 | None
    """The bytes, or the first of them; null for a message without a value, and for one that could not be read."""
    truncated: NotRequired[Literal[True]]


@described
class UnreadableHeader(TypedDict):
    """A header of the original whose name is not UTF-8."""

    name_base64: Base64
    value_base64: Base64 | None


@described
class FailedEvent(TypedDict):
    """Where a consumed message was, and why it failed."""

    source_topic: str
    source_partition: Position
    source_offset: Position
    source_timestamp_ms: int | None
    """The Kafka timestamp of the original; null where it could not be read."""
    value_bytes: NotRequired[Count | None]
    """The size of the original's value; null where it had none."""
    value_sha256: NotRequired[str | None]
    source_key: NotRequired[str | None]
    """The original's key as text."""
    source_key_base64: NotRequired[Base64 | None]
    source_headers_left_out: NotRequired[Count]
    """How many headers of the original are not kept."""
    source_headers_unreadable: NotRequired[list[UnreadableHeader]]
    attempts: NotRequired[Count]
    error_type: NotRequired[str]
    error_message: NotRequired[str]
    truncated: NotRequired[Literal[True]]
    """The dead letter does not have all of the original. `bcs dlq replay` reads the original at its position."""
    unread: NotRequired[Literal[True]]
    """The original could not be read."""
    note: NotRequired[str]


@described
class FailedResolution(TypedDict):
    """The request that failed, and why."""

    batch_id: str
    requested_pipeline: str
    error_type: str
    error_message: str


@described
class EventDeadLetter(TypedDict):
    """The dead letter of a consumed message."""

    schema_version: Literal[1]
    failed_event_envelope: Mapping[str, Any]
    """The original, byte for byte, where it is a JSON object; else `RawOriginal`."""
    dlq_reason: DeadLetterReason
    timestamp: Timestamp
    service: Service
    additional_metadata: FailedEvent


@described
class ResolutionDeadLetter(TypedDict):
    """The dead letter of a request that failed because of BCS."""

    schema_version: Literal[1]
    failed_event_envelope: Mapping[str, Any]
    """The body of the request."""
    dlq_reason: Literal["pipeline_resolution_failed"]
    timestamp: Timestamp
    service: Service
    additional_metadata: FailedResolution
