"""The JSON Schemas of the topics accept what BCS can use, and describe whatever BCS publishes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.errors import DeadLetterReason, UndecodableMessage
from bcs.wire import topics
from bcs.wire.dead_letters.encode import as_truncated, dead_letter, failed_resolution, unread_dead_letter
from bcs.wire.decoding import EventDecoder
from bcs.wire.events import BatchStatus, CJEssayStatus, EssayStatus
from bcs.wire.published import ConsumedMessage, phases_skipped
from tests.support.event_schemas import accepts_value, assert_described

pytestmark = pytest.mark.release

EXAMPLES = 2_000
DECODER = EventDecoder(PLATFORM_PHASES)
NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)

# A whole number that is written with a fraction (3.0) is an integer in JSON Schema, and no integer for BCS.
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda number: not number.is_integer()
)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=5)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
identifiers = st.text(min_size=1, max_size=4) | st.sampled_from(["b", "essay-1", "x" * 255, "x" * 256, " b", "b\t", ""])
ids = st.lists(identifiers, max_size=3)
nullable_ids = st.lists(identifiers | st.none(), max_size=3)
# BCS reads a number as a time, too, and other ways to write one. The schema leaves them out.
times = st.integers(0, 253_402_300_799).map(
    lambda seconds: datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
)
no_times = st.sampled_from(["", "yesterday", "1969-12-31T23:59:59Z", "2026-13-01T00:00:00Z", "2026-01-31T08:60:00Z"])
other_kinds = (
    st.booleans() | st.lists(st.none(), max_size=1) | st.dictionaries(st.text(max_size=2), st.none(), max_size=1)
)
maybe_times = times | times | st.none() | no_times | other_kinds


def one_of(*values: object) -> st.SearchStrategy[Any]:
    """One of some values, or something else."""
    return st.sampled_from(values) | anything


def documents(required: dict[str, st.SearchStrategy[Any]], optional: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Objects that mostly have what they need."""
    whole = st.fixed_dictionaries(required, optional=optional)
    lacking = st.fixed_dictionaries({}, optional={**required, **optional})
    return whole | whole | whole | lacking


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of a strategy, and now and then something else."""
    return strategy | strategy | strategy | strategy | anything


DATA: dict[str, st.SearchStrategy[Any]] = {
    topics.SPELLCHECK_COMPLETED: documents(
        {"entity_id": mostly(identifiers), "batch_id": mostly(identifiers), "status": one_of(*EssayStatus)},
        {"timestamp": maybe_times, "correlation_id": anything},
    ),
    topics.CJ_COMPLETED: documents(
        {
            "entity_id": mostly(identifiers),
            "status": one_of(*BatchStatus, *CJEssayStatus),
            "processing_summary": mostly(
                documents(
                    {},
                    {
                        "successful_essay_ids": mostly(nullable_ids),
                        "failed_essay_ids": mostly(nullable_ids),
                        "failed": anything,
                    },
                )
            ),
        },
        {"timestamp": maybe_times},
    ),
    topics.PHASE_OUTCOME: documents(
        {
            "batch_id": mostly(identifiers),
            # Other names depend on the pipeline file.
            "phase_name": st.sampled_from(sorted(PLATFORM_PHASES)) | st.none() | numbers,
            "phase_status": one_of(*BatchStatus),
        },
        {
            "processed_essays": mostly(st.lists(documents({"essay_id": mostly(identifiers)}, {}), max_size=3)),
            "failed_essay_ids": mostly(nullable_ids),
            "correlation_id": anything,
            "timestamp": maybe_times,
        },
    ),
    topics.ESSAYS_REGISTERED: documents(
        {
            "entity_id": mostly(identifiers),
            "expected_essay_count": mostly(st.integers(-1, 5)),
            "essay_ids": mostly(ids),
        },
        {"timestamp": maybe_times},
    ),
}


def envelopes(topic: str) -> st.SearchStrategy[Any]:
    """Values of a topic."""
    return mostly(
        documents(
            {"data": mostly(DATA[topic])},
            {"event_id": anything, "event_timestamp": maybe_times, "correlation_id": anything, "metadata": anything},
        )
    )


@pytest.mark.parametrize("topic", topics.CONSUMED)
def test_bcs_uses_what_the_schema_accepts_and_nothing_else(topic: str) -> None:
    used = {True: 0, False: 0}

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(document=envelopes(topic))
    def agree(document: Any) -> None:
        try:
            DECODER.decode(topic, json.dumps(document).encode(), 1_769_846_400_000)
        except UndecodableMessage:
            decoded = False
        else:
            decoded = True
        used[decoded] += 1
        assert accepts_value(topic).is_valid(document) == decoded, document

    agree()
    assert min(used.values()) > EXAMPLES // 50


@settings(max_examples=EXAMPLES // 10, deadline=None)
@given(
    batch_id=identifiers,
    phases=st.lists(st.sampled_from(sorted(PLATFORM_PHASES)), max_size=3, unique=True),
    correlation_id=st.text(min_size=1, max_size=40) | st.uuids().map(str),
)
def test_every_announcement_is_described(batch_id: str, phases: list[str], correlation_id: str) -> None:
    for message in phases_skipped(batch_id, phases, correlation_id, NOW):
        assert_described(message.topic, message.key, message.value, message.headers)


small, large = st.binary(max_size=50), st.integers(64 * 1024, 70 * 1024).map(lambda size: b"x" * size)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)


@settings(max_examples=EXAMPLES // 20, deadline=None)
@given(
    topic=st.sampled_from(topics.CONSUMED),
    key=st.none() | small | st.just(b"k" * 2000),
    value=st.none() | small | large | anything.map(lambda value: json.dumps(value).encode()),
    headers=st.lists(st.tuples(names, st.none() | small), max_size=3).map(tuple),
    unreadable=st.lists(st.tuples(small, st.none() | small), max_size=2).map(tuple),
    left_out=st.integers(0, 3),
    reason=st.sampled_from(get_args(DeadLetterReason)),
    batch_id=st.none() | identifiers,
    limit=st.none() | st.integers(1000, 100_000),
    text=st.text(max_size=50),
)
def test_every_dead_letter_is_described(
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Any,
    unreadable: Any,
    left_out: int,
    reason: str,
    batch_id: str | None,
    limit: int | None,
    text: str,
) -> None:
    failed = ConsumedMessage(
        topic,
        1,
        2,
        timestamp_ms=1_769_846_400_000,
        key=key,
        value=value,
        headers=headers,
        unreadable_headers=unreadable,
        headers_left_out=left_out,
    )
    detail = {"attempts": 1, "error_type": "UndecodableMessage", "error_message": text}
    made = dead_letter(failed, reason, detail, NOW, batch_id, limit_bytes=limit)
    smaller = as_truncated(made)
    for message in (made, *([smaller] if smaller else []), unread_dead_letter(topic, 1, 2, reason, detail, NOW)):
        assert_described(message.topic, message.key, message.value, message.headers)


@settings(max_examples=EXAMPLES // 20, deadline=None)
@given(
    request=small | large | anything.map(lambda value: json.dumps(value).encode()), batch_id=identifiers, text=st.text()
)
def test_every_dead_letter_of_a_request_is_described(request: bytes, batch_id: str, text: str) -> None:
    made = failed_resolution(
        request, batch_id, "nlp", ValueError(text), NOW, (2, "2026"), used_fields=b'{"batch_id": "b"}'
    )
    smaller = as_truncated(made)
    assert_described(made.topic, made.key, made.value, made.headers)
    if smaller:
        assert_described(smaller.topic, smaller.key, smaller.value, smaller.headers)
