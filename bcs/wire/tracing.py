"""The trace context of W3C (https://www.w3.org/TR/trace-context): in HTTP headers, Kafka headers and envelopes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic_core import SchemaValidator, core_schema

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
_MOST_STATE_CHARACTERS = 512
# To look through a larger envelope would block the event loop.
_MOST_ENVELOPE_BYTES = 1024 * 1024

_is_traceparent = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Names the span that caused something. It travels with messages, because each actor is a task of its own.

    :param traceparent: valid by the standard.
    :param tracestate: empty where there is none.
    """

    traceparent: str
    tracestate: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """The headers of HTTP, which are also the fields of an envelope's metadata."""
        if self.tracestate:
            return {TRACEPARENT: self.traceparent, TRACESTATE: self.tracestate}
        return {TRACEPARENT: self.traceparent}

    @property
    def kafka_headers(self) -> tuple[tuple[str, bytes], ...]:
        """The headers of a Kafka message."""
        return tuple((name, text.encode()) for name, text in self.fields.items())


def trace_of(fields: Mapping[str, str]) -> TraceContext | None:
    """The context in the headers of a request; invalid parts are left out, as the standard requires."""
    parent = fields.get(TRACEPARENT)
    return None if parent is None else trace_from(parent, fields.get(TRACESTATE))


def trace_from(parent: str | None, state: str | None = None) -> TraceContext | None:
    """The context in the text of a `traceparent` and of a `tracestate`; invalid parts are left out."""
    if parent is None or not _is_traceparent(parent):
        return None
    if state and len(state) <= _MOST_STATE_CHARACTERS and state.isascii() and state.isprintable():
        return TraceContext(parent, state)
    return TraceContext(parent)


def trace_in(headers: Iterable[tuple[str, bytes | None]], name: str = TRACEPARENT) -> TraceContext | None:
    """The context in the headers of a Kafka message; invalid parts are left out.

    :param name: the header that has the `traceparent`.
    """
    # A client that adds a header does not look for an earlier one, so the last one counts.
    found = {known: value for known, value in headers if known in (name, TRACESTATE)}
    parent = found.get(name)
    return trace_from(_text(parent), _text(found.get(TRACESTATE))) if parent else None


def _optional_text() -> core_schema.TypedDictField:
    text = core_schema.with_default_schema(core_schema.str_schema(), default=None, on_error="default")
    return core_schema.typed_dict_field(text, required=False)


_metadata = SchemaValidator(
    core_schema.typed_dict_schema(
        {
            "metadata": core_schema.typed_dict_field(
                core_schema.typed_dict_schema({TRACEPARENT: _optional_text(), TRACESTATE: _optional_text()})
            )
        }
    )
)


def trace_of_message(headers: Iterable[tuple[str, bytes | None]], envelope: bytes | None) -> TraceContext | None:
    """The context of a message from Kafka: in its headers, else in the metadata of its envelope."""
    # The relay makes the headers at each attempt to publish, so they are closer than the envelope.
    found = trace_in(headers)
    if found or envelope is None or len(envelope) > _MOST_ENVELOPE_BYTES:
        return found
    try:
        metadata = _metadata.validate_json(envelope)["metadata"]
    except ValueError:
        return None
    return trace_from(metadata.get(TRACEPARENT), metadata.get(TRACESTATE))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
