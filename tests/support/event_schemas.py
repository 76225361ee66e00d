"""The JSON Schemas of what goes over Kafka, as validators."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema_rs

from bcs.wire import topics
from bcs.wire.asyncapi import MESSAGES, value_schema
from bcs.wire.published import Headers


@cache
def accepts_value(topic: str) -> jsonschema_rs.Validator:
    """Validates the values of a topic. A member of a published value that the schema does not have is refused."""
    schema = value_schema(topic)
    if topic in topics.PUBLISHED:
        for one in (schema, *schema["$defs"].values()):
            if "properties" in one:
                one["additionalProperties"] = False
    return jsonschema_rs.validator_for(schema, validate_formats=True)


@cache
def _accepts_headers(topic: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(MESSAGES[topic][0].headers or {"type": "object"}, validate_formats=True)


def assert_described(topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
    """A message that BCS published is as the description of its topic says."""
    if value is None:
        kinds = [message for message in MESSAGES[topic] if message.document is None]
        assert any(_is_marker(message.key, message.headers, key, headers) for message in kinds), (topic, key, headers)
        return
    accepts_value(topic).validate(json.loads(value))
    _accepts_headers(topic).validate({name: (text or b"").decode(errors="replace") for name, text in headers})


def _is_marker(key_schema: Any, header_schema_: Any, key: bytes | None, headers: Headers) -> bool:
    named = {name: (text or b"").decode() for name, text in headers}
    of_headers = header_schema_ is None or jsonschema_rs.is_valid(header_schema_, named)
    return key is not None and of_headers and jsonschema_rs.is_valid(key_schema, key.decode())


def unresolved(document: Any) -> list[str]:
    """The references in a document that lead nowhere."""
    return [reference for reference in _references(document) if not _leads_somewhere(document, reference)]


def _leads_somewhere(document: Any, reference: str) -> bool:
    place = document
    for step in reference.removeprefix("#/").split("/"):
        if not isinstance(place, dict) or step not in place:
            return False
        place = place[step]
    return reference.startswith("#/")


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(value.get("$ref"), str):
        yield value["$ref"]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _references(inner)
