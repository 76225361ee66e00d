"""What BCS publishes, and where."""

from __future__ import annotations

import json
from collections.abc import Iterable

from aiokafka import ConsumerRecord

from bcs.wire import topics
from tests.support.event_schemas import assert_described
from tests.surface.facts import lines_of
from tests.surface.placeholders import Placeholders


def facts_of_messages(name: str, records: Iterable[ConsumerRecord], words: Placeholders) -> list[str]:
    """Lines for each message: its key, its headers, and its value.

    :param name: begins each line.
    """
    lines = []
    for record in sorted(records, key=lambda record: (record.value or b"", record.offset)):
        about = f"{name} on {record.topic}"
        if record.topic in topics.PUBLISHED:
            assert_described(record.topic, record.key, record.value, record.headers)
        lines.append(f"{about}: key {words.text(_text(record.key))}")
        lines += [f"{about}: header {header}: {_header(header, value, words)}" for header, value in record.headers]
        if record.value is None:
            lines.append(f"{about}: no value")
        else:
            lines += lines_of(about, _document(record.value, words))
    return lines


def facts_of_topics() -> list[str]:
    """A line for each topic that BCS reads or writes."""
    return [*(f"reads {topic}" for topic in topics.CONSUMED), *(f"writes {topic}" for topic in topics.PUBLISHED)]


def _document(value: bytes, words: Placeholders) -> object:
    try:
        return words.document(json.loads(value))
    except ValueError:
        return _text(value)


def _header(name: str, value: bytes | None, words: Placeholders) -> str:
    text = words.text(_text(value))
    return "<number>" if name.endswith(("-partition", "-offset")) else text


def _text(value: bytes | None) -> str:
    return "none" if value is None else value.decode(errors="backslashreplace")
