"""Published messages: PhaseSkippedV1 with repeatable ids, and dead letters that keep every byte."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from bcs.wire import topics
from bcs.wire.dead_letters.encode import LARGE_DEAD_LETTER_BYTES, dead_letter, failed_resolution
from bcs.wire.published import ConsumedMessage, OutboundMessage, as_uuid, phases_skipped
from tests.support.tiers import examples

NOW = datetime(2024, 11, 23, 12, 0, 0, 5, tzinfo=timezone(timedelta(hours=2)))
NOW_TEXT = "2024-11-23T10:00:00.000005Z"
CORRELATION = "550e8400-e29b-41d4-a716-446655440000"
DETAIL = {"attempts": 3, "error_type": "SomeError", "error_message": "ä \ud800 \x00"}
START = b'{"schema_version":1,"failed_event_envelope":'


def consumed(value: bytes | None, key: bytes | None = b"essay-1") -> ConsumedMessage:
    return ConsumedMessage(topics.SPELLCHECK_COMPLETED, 4, 77, timestamp_ms=1_700_000_000_123, key=key, value=value)


def letter(value: bytes | None, batch_id: str | None = None) -> OutboundMessage:
    return dead_letter(consumed(value), "not_json", DETAIL, NOW, batch_id)


def strict(text: bytes) -> dict[str, Any]:
    """Parse as JSON, and as nothing else: no NaN, no BOM, no other encoding."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    document = json.loads(text.decode("utf-8"), parse_constant=refuse)
    assert isinstance(document, dict)
    return document


def is_json_object(raw: bytes) -> bool:
    try:
        strict(raw)
    except (ValueError, AssertionError, RecursionError):
        return False
    return True


def original(written: OutboundMessage) -> bytes | None:
    """The consumed value, as a replay restores it."""
    document = strict(written.value)
    size = document["additional_metadata"]["value_bytes"]
    envelope = document["failed_event_envelope"]
    if envelope.keys() == {"raw_base64"} and written.value.startswith(START + b'{"raw_base64":'):
        raw = envelope["raw_base64"]
        return None if raw is None else base64.b64decode(raw, validate=True)
    return written.value[len(START) : len(START) + size]


def test_phase_skipped_has_exactly_the_fields_of_the_contract() -> None:
    [message] = phases_skipped("batch é", ["spellcheck"], CORRELATION, NOW)
    document = strict(message.value)
    assert uuid.UUID(document.pop("event_id")).version == 5
    assert document == {
        "event_type": "huleedu.batch.phase.skipped.v1",
        "event_timestamp": NOW_TEXT,
        "source_service": "batch_conductor_service",
        "schema_version": 1,
        "correlation_id": CORRELATION,
        "data_schema_uri": None,
        "data": {
            "event": "batch.phase.skipped",
            "batch_id": "batch é",
            "phase_name": "spellcheck",
            "skip_reason": "already_completed",
            "storage_id": None,
            "correlation_id": CORRELATION,
            "metadata": {
                "entity_id": "batch é",
                "entity_type": "batch",
                "timestamp": NOW_TEXT,
                "event": "batch.phase.skipped",
            },
        },
        "metadata": {"partition_key": "batch é"},
    }
    assert (message.kind, message.topic) == ("phase_skipped", "huleedu.batch.phase.skipped.v1")
    assert (message.key, message.truncated) == ("batch é".encode(), None)


def event_ids(batch_id: str, phases: list[str], correlation_id: str, now: datetime = NOW) -> list[str]:
    return [strict(each.value)["event_id"] for each in phases_skipped(batch_id, phases, correlation_id, now)]


def test_a_repeated_request_announces_under_the_same_ids() -> None:
    first = event_ids("b", ["spellcheck", "nlp"], CORRELATION)
    assert len(set(first)) == 2
    assert event_ids("b", ["nlp", "spellcheck"], CORRELATION, NOW + timedelta(days=1)) == first[::-1]


def test_the_id_of_an_announcement_never_changes_between_releases() -> None:
    assert event_ids("batch_12345", ["spellcheck"], CORRELATION) == ["c40235d0-a500-5f4f-b66a-f4c8148dac31"]


@given(
    st.lists(
        st.tuples(st.text('ab,"[]\\ 😀', min_size=1), st.text('ab,"[]\\ 😀'), st.sampled_from(["a", "b", "ab"])),
        unique=True,
        min_size=2,
    )
)
@settings(deadline=None)
def test_different_requests_batches_and_phases_have_different_ids(triples: list[tuple[str, str, str]]) -> None:
    ids = [event_ids(batch_id, [phase], correlation)[0] for correlation, batch_id, phase in triples]
    assert len(set(ids)) == len(triples)


class PlatformMetadata(BaseModel):
    """As the platform has it around the data of an event."""

    model_config = ConfigDict(extra="forbid")

    entity_id: str
    entity_type: str
    timestamp: datetime
    event: str


class PlatformPhaseSkipped(BaseModel):
    """The platform's model of the event."""

    model_config = ConfigDict(extra="forbid")

    event: Literal["batch.phase.skipped"]
    batch_id: str
    phase_name: Literal["spellcheck", "nlp", "cj_assessment", "ai_feedback", "student_matching"]
    skip_reason: str
    storage_id: str | None
    correlation_id: uuid.UUID
    metadata: PlatformMetadata


class PlatformEnvelope(BaseModel):
    """The envelope around it."""

    model_config = ConfigDict(extra="forbid")

    event_id: uuid.UUID
    event_type: str
    event_timestamp: datetime
    source_service: str
    schema_version: Literal[1]
    correlation_id: uuid.UUID
    data_schema_uri: str | None
    data: PlatformPhaseSkipped
    metadata: dict[str, Any] | None


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100))
@example("req-1")
@example(CORRELATION)
@settings(deadline=None)
def test_the_platform_s_model_accepts_announcements_for_any_correlation_id(text: str) -> None:
    first, again = phases_skipped("b", ["nlp"], text, NOW) + phases_skipped("b", ["nlp"], text, NOW)
    event = PlatformEnvelope.model_validate_json(first.value)
    assert str(event.correlation_id) == str(event.data.correlation_id) == as_uuid(text)
    assert first == again


def test_a_dead_letter_has_exactly_the_fields_of_the_contract() -> None:
    raw = b'{"data": {"a": 1}}'
    written = letter(raw, "batch-1")
    assert strict(written.value) == {
        "schema_version": 1,
        "failed_event_envelope": {"data": {"a": 1}},
        "dlq_reason": "not_json",
        "timestamp": NOW_TEXT,
        "service": "batch_conductor_service",
        "additional_metadata": {
            "source_topic": topics.SPELLCHECK_COMPLETED,
            "source_partition": 4,
            "source_offset": 77,
            "source_timestamp_ms": 1_700_000_000_123,
            "source_key": "essay-1",
            "source_key_base64": base64.b64encode(b"essay-1").decode(),
            "value_bytes": len(raw),
            "value_sha256": hashlib.sha256(raw).hexdigest(),
            **DETAIL,
        },
    }
    assert (written.kind, written.topic) == ("dead_letter", f"{topics.SPELLCHECK_COMPLETED}.DLQ")
    assert (written.key, written.truncated) == (b"batch-1", None)


def test_without_a_batch_the_key_is_the_message_s_key_or_position() -> None:
    assert letter(b"x").key == b"essay-1"
    keyless = dead_letter(replace(consumed(b"x"), key=None), "not_json", {}, NOW, None)
    assert keyless.key == b"huleedu.batch.spellcheck.phase.completed.v1/4/77"
    assert strict(keyless.value)["additional_metadata"]["source_key_base64"] is None


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b' \t\r\n{ "b" : 1 ,\n\n"a":2.50 }  \n',
        b'{"a":1,"a":2}',
        '{"å": "😀", "\u2028": "\u007f"}'.encode(),
        rb'{"\ud83d": "\/\u00e9"}',
        b'{"n": 123456789012345678901234567890, "x": 1.0000000000000000000001, "e": 1E+400, "z": -0}',
        b'{"raw_base64": "AAAA"}',
        b'{"data": ' + b'{"a": [' * 200 + b"]}" * 200 + b"}",
    ],
)
def test_a_json_object_stands_in_the_letter_byte_for_byte(raw: bytes) -> None:
    written = letter(raw)
    strict(written.value)
    assert written.value.startswith(START + raw + b",")
    assert strict(written.value)["additional_metadata"]["value_bytes"] == len(raw)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"NaN",
        b'{"a": NaN}',
        b'{"a": [-Infinity]}',
        b"\xef\xbb\xbf{}",
        b'{"a": "\xff"}',
        b'{"a": 1',
        b'{"a": 1}}',
        b'{"a": 1},"service":"someone else"',
        b'{"a": "\n"}',
        b'{"a": 01}',
        b"{'a': 1}",
        "{}".encode("utf-16"),
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_json_object_is_kept_as_base64(raw: bytes | None) -> None:
    written = letter(raw)
    document = strict(written.value)
    expected = None if raw is None else base64.b64encode(raw).decode()
    assert document["failed_event_envelope"] == {"raw_base64": expected}
    assert document["additional_metadata"]["value_bytes"] == (None if raw is None else len(raw))
    assert document["additional_metadata"]["value_sha256"] == (None if raw is None else hashlib.sha256(raw).hexdigest())
    assert document["service"] == "batch_conductor_service"


@pytest.mark.parametrize(
    ("inside", "verbatim"),
    [
        (b'"x"', True),
        (b'"NaN and Infinity"', True),
        (b"NaN", False),
        (b"-Infinity", False),
        (rb'"\ud83d"', False),
        (b"1]", False),
    ],
)
def test_a_large_object_is_kept_as_it_is_if_every_reader_can_read_it(inside: bytes, verbatim: bool) -> None:
    raw = b'{"lists": [' + b"[]," * 30_000 + inside + b"]}"
    written = letter(raw)
    assert written.value.startswith(START + raw + b",") == verbatim
    assert original(written) == raw


def test_no_large_object_is_made_into_python_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made into objects")

    monkeypatch.setattr(json, "loads", never)
    raw = b'{"lists": [' + b"[]," * 30_000 + b"1]}"
    assert letter(raw).value.startswith(START + raw)


fragments = st.sampled_from(
    [b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\\u", b"d800", b"NaN", b"1e9", b"-", b"0", b"null", b" ", b"a"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Real objects in any layout, with a byte put in or taken out at times; and bytes of all kinds."""
    kind = draw(st.sampled_from(["object", "broken", "fragments", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=60))
    if kind == "fragments":
        return b"".join(draw(st.lists(fragments, max_size=12)))
    document = draw(st.dictionaries(st.text(), json_values, max_size=4))
    text = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 0, 3])))
    raw = text.encode("utf-8", "surrogatepass")
    if kind == "broken":
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=2)) + raw[at + draw(st.integers(0, 2)) :]
    return raw


@settings(deadline=None, max_examples=examples(150))
@given(messages())
@example(b"{}")
def test_every_letter_is_strict_json_and_gives_the_bytes_back(raw: bytes) -> None:
    written = letter(raw, "batch")
    document = strict(written.value)
    assert original(written) == raw
    assert hashlib.sha256(raw).hexdigest() == document["additional_metadata"]["value_sha256"]
    assert written.value.startswith(START + raw + b",") == is_json_object(raw)


@pytest.mark.parametrize("start", [b'{"a": "', b"\xff"])
def test_a_large_message_has_a_reduced_letter_besides_the_whole_one(start: bytes) -> None:
    raw = start + b"x" * LARGE_DEAD_LETTER_BYTES + b'"}'
    written = letter(raw, "batch-1")
    assert original(written) == raw
    assert written.truncated is not None
    whole, reduced = strict(written.value), strict(written.truncated)
    envelope = reduced.pop("failed_event_envelope")
    assert base64.b64decode(envelope.pop("raw_base64")) == raw[: 64 * 1024]
    assert envelope == {"truncated": True}
    metadata = reduced["additional_metadata"]
    assert metadata.pop("truncated") is True
    assert "65536" in metadata["note"]
    assert str(len(raw)) in metadata.pop("note")
    assert metadata["value_bytes"] == len(raw)
    whole.pop("failed_event_envelope")
    assert reduced == whole


def test_only_a_message_over_the_limit_has_a_reduced_letter() -> None:
    assert letter(b"x" * LARGE_DEAD_LETTER_BYTES).truncated is None
    assert letter(b"x" * (LARGE_DEAD_LETTER_BYTES + 1)).truncated is not None


def test_a_failed_resolution_s_letter_carries_request_and_error() -> None:
    request = {"batch_id": "batch-1", "requested_pipeline": "nlp", "correlation_id": "c", "more": ["é"]}
    body = json.dumps(request, indent=3, ensure_ascii=False).encode()
    written = failed_resolution(body, "batch-1", "nlp", ValueError("no \udc00 good"), NOW)
    assert strict(written.value) == {
        "schema_version": 1,
        "failed_event_envelope": request,
        "dlq_reason": "pipeline_resolution_failed",
        "timestamp": NOW_TEXT,
        "service": "batch_conductor_service",
        "additional_metadata": {
            "batch_id": "batch-1",
            "requested_pipeline": "nlp",
            "error_type": "ValueError",
            "error_message": "no \udc00 good",
        },
    }
    assert body in written.value
    assert (written.topic, written.key) == ("huleedu.pipelines.resolution.DLQ", b"batch-1")


def test_times_are_written_in_utc() -> None:
    [message] = phases_skipped("b", ["nlp"], "c", datetime(2024, 1, 1, tzinfo=UTC))
    assert strict(message.value)["event_timestamp"] == "2024-01-01T00:00:00Z"
