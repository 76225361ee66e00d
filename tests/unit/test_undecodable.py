"""Undecodable messages are refused with a typed reason, and with the batch where it is known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bcs.domain.pipelines import PLATFORM_PHASES, PhaseNames
from bcs.errors import UndecodableMessage
from bcs.wire import topics
from bcs.wire.decoding import EventDecoder
from tests.support import events

DECODER = EventDecoder(PLATFORM_PHASES)
EVENTS: dict[str, dict[str, Any]] = {
    made.topic: json.loads(made.value)["data"]
    for made in (
        events.spellchecked("batch-1", "essay-1"),
        events.cj_completed("batch-1", ["a", "b"]),
        events.phase_outcome("batch-1", "nlp", ["a", "b"]),
        events.registered("batch-1", ["a", "b"]),
    )
}
BATCH_FIELDS = {
    topics.SPELLCHECK_COMPLETED: "batch_id",
    topics.CJ_COMPLETED: "entity_id",
    topics.PHASE_OUTCOME: "batch_id",
    topics.ESSAYS_REGISTERED: "entity_id",
}
every_topic = pytest.mark.parametrize("topic", topics.CONSUMED)


def message(topic: str, changed: dict[str, Any] | None = None, **fields: object) -> bytes:
    return json.dumps(events.envelope(topic, {**EVENTS[topic], **(changed or {})}, **fields)).encode()


def refusal_of(topic: str, value: bytes | None) -> UndecodableMessage:
    with pytest.raises(UndecodableMessage) as refusal:
        DECODER.decode(topic, value, 1_700_000_000_123)
    return refusal.value


@every_topic
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null_value"),
        (b"", "not_json"),
        (b"\xff\xfe{}", "not_utf8"),
        (b'{"data": {"batch_id": "\xc3"}}', "not_utf8"),
        (b'{"data": ', "not_json"),
        (b"\xef\xbb\xbf{}", "not_json"),
        (b"{'data': 1}", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"data":' * 100_000, "not_json"),
        (b"null", "not_an_object"),
        (b"NaN", "not_an_object"),
        (b'[{"data": 1}]', "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"12", "not_an_object"),
        (b"{}", "invalid_event"),
        (b'{"data": null}', "invalid_event"),
        (b'{"data": []}', "invalid_event"),
        (b'{"data": "text"}', "invalid_event"),
        (b'{"data": {}}', "invalid_event"),
    ],
)
def test_what_is_no_event_is_refused_with_its_reason(topic: str, value: bytes | None, reason: str) -> None:
    refusal = refusal_of(topic, value)
    assert refusal.reason == reason
    assert refusal.batch_id is None
    assert refusal.detail
    json.dumps(refusal.detail).encode()


@every_topic
@pytest.mark.parametrize("batch_id", ["", "x" * 256, None, 7, ["a"]])
def test_an_unusable_batch_id_is_refused_and_not_reported(topic: str, batch_id: object) -> None:
    field = BATCH_FIELDS[topic]
    refusal = refusal_of(topic, message(topic, {field: batch_id}))
    assert (refusal.reason, refusal.batch_id) == ("invalid_event", None)
    assert field in refusal.detail


@pytest.mark.parametrize(
    ("topic", "wrong", "named"),
    [
        (topics.SPELLCHECK_COMPLETED, {"status": "done"}, "status"),
        (topics.SPELLCHECK_COMPLETED, {"entity_id": ""}, "entity_id"),
        (topics.SPELLCHECK_COMPLETED, {"entity_id": None}, "entity_id"),
        (topics.SPELLCHECK_COMPLETED, {"timestamp": "yesterday"}, "timestamp"),
        (topics.SPELLCHECK_COMPLETED, {"timestamp": float("nan")}, "timestamp"),
        (topics.SPELLCHECK_COMPLETED, {"timestamp": "1969-12-31T23:59:59.999999Z"}, "1970"),
        (topics.CJ_COMPLETED, {"processing_summary": None}, "processing_summary"),
        (topics.CJ_COMPLETED, {"processing_summary": {"failed_essay_ids": "a"}}, "failed_essay_ids"),
        (topics.PHASE_OUTCOME, {"processed_essays": ["a"]}, "processed_essays"),
        (topics.PHASE_OUTCOME, {"phase_status": None}, "phase_status"),
        (topics.ESSAYS_REGISTERED, {"expected_essay_count": -1}, "expected_essay_count"),
        (topics.ESSAYS_REGISTERED, {"expected_essay_count": float("nan")}, "expected_essay_count"),
        (topics.ESSAYS_REGISTERED, {"essay_ids": ["a", ""]}, "essay_ids"),
    ],
)
def test_a_wrong_field_is_named_together_with_the_batch(topic: str, wrong: dict[str, Any], named: str) -> None:
    refusal = refusal_of(topic, message(topic, wrong))
    assert (refusal.reason, refusal.batch_id) == ("invalid_event", "batch-1")
    assert named in refusal.detail


@every_topic
def test_a_missing_field_is_named_together_with_the_batch(topic: str) -> None:
    optional = {"timestamp", "processed_essays", "failed_essay_ids"}
    used = {"entity_id", "batch_id", "status", "processing_summary", "phase_name", "phase_status", "essay_ids"}
    for field in (used | {"expected_essay_count"}) & EVENTS[topic].keys() - optional:
        data = {name: value for name, value in EVENTS[topic].items() if name != field}
        refusal = refusal_of(topic, json.dumps({"data": data}).encode())
        assert refusal.reason == "invalid_event"
        assert refusal.batch_id == (None if field == BATCH_FIELDS[topic] else "batch-1")
        assert field in refusal.detail


def test_an_outcome_of_an_unknown_phase_is_kept_where_the_settings_say_so_or_a_later_file_has_it() -> None:
    value = message(topics.PHASE_OUTCOME, {"phase_name": "grammar"})
    keeping, reloaded = EventDecoder((), keep_unknown_phases=True), EventDecoder(())
    with pytest.raises(UndecodableMessage):
        reloaded.decode(topics.PHASE_OUTCOME, value, 1)
    reloaded.use_phases(PhaseNames(["grammar"]))
    for decoder, unknown in ((keeping, "grammar"), (reloaded, None)):
        event = decoder.decode(topics.PHASE_OUTCOME, value, 1)
        [fact] = event.facts
        assert getattr(fact, "phase", None) == "grammar"
        assert decoder.unknown_phase(event) == unknown
    with pytest.raises(UndecodableMessage, match="unknown_phase"):
        keeping.decode(topics.PHASE_OUTCOME, message(topics.PHASE_OUTCOME, {"phase_name": "No phase"}), 1)


def test_a_phase_that_nobody_knows_is_refused() -> None:
    refusal = refusal_of(topics.PHASE_OUTCOME, message(topics.PHASE_OUTCOME, {"phase_name": "grammar"}))
    assert (refusal.reason, refusal.batch_id) == ("unknown_phase", "batch-1")
    assert (
        refusal.detail == f"phase_name 'grammar' is not a known phase; known are: {', '.join(sorted(PLATFORM_PHASES))}"
    )
    long = refusal_of(topics.PHASE_OUTCOME, message(topics.PHASE_OUTCOME, {"phase_name": "\n" + "x" * 10_000}))
    assert len(long.detail) < 300
    assert "\n" not in long.detail


@every_topic
def test_lone_surrogates_are_refused_and_their_report_can_be_written(topic: str) -> None:
    field = BATCH_FIELDS[topic]
    in_batch_id = message(topic, {field: "\ud800"})
    elsewhere = message(topic, {"correlation_id": "\udfff"}, correlation_id="\ud83d")
    for value, batch_id in ((in_batch_id, None), (elsewhere, "batch-1")):
        refusal = refusal_of(topic, value)
        assert (refusal.reason, refusal.batch_id) == ("invalid_event", batch_id)
        refusal.detail.encode()


@pytest.mark.parametrize("record_ms", [-1, 253_402_300_800_000, 2**63 - 1])
def test_a_time_of_kafka_s_that_no_calendar_has_is_refused(record_ms: int) -> None:
    data = {name: value for name, value in EVENTS[topics.SPELLCHECK_COMPLETED].items() if name != "timestamp"}
    value = json.dumps({"data": data}).encode()
    assert DECODER.decode(topics.SPELLCHECK_COMPLETED, value, 253_402_300_799_999).facts
    with pytest.raises(UndecodableMessage, match="1970") as refusal:
        DECODER.decode(topics.SPELLCHECK_COMPLETED, value, record_ms)
    assert (refusal.value.reason, refusal.value.batch_id) == ("invalid_event", "batch-1")


def test_an_event_that_is_too_large_is_refused_unparsed() -> None:
    event = events.spellchecked("batch-1", "essay-1")
    limited = EventDecoder(PLATFORM_PHASES, max_event_bytes=len(event.value))
    assert limited.decode(event.topic, event.value, 1).facts
    for larger in (event.value + b" ", b"[" * len(event.value) + b"]"):
        with pytest.raises(UndecodableMessage) as refusal:
            limited.decode(event.topic, larger, 1)
        assert (refusal.value.reason, refusal.value.batch_id) == ("too_large", None)
        assert "BCS_MAX_EVENT_BYTES" in refusal.value.detail


@pytest.mark.parametrize(
    ("topic", "wrong", "named"),
    [
        (topics.CJ_COMPLETED, {"processing_summary": {"successful_essay_ids": [1] * 50}}, "successful_essay_ids"),
        (topics.CJ_COMPLETED, {"processing_summary": {"failed_essay_ids": [""] * 50}}, "failed_essay_ids"),
        (topics.PHASE_OUTCOME, {"processed_essays": [{}] * 50}, "processed_essays"),
        (topics.PHASE_OUTCOME, {"failed_essay_ids": [[]] * 50}, "failed_essay_ids"),
        (topics.ESSAYS_REGISTERED, {"essay_ids": [None] * 50}, "essay_ids"),
    ],
)
def test_a_list_of_invalid_ids_is_left_at_the_first_of_them(topic: str, wrong: dict[str, Any], named: str) -> None:
    """An error for each of 475,000 took seconds and 400 MB."""
    refusal = refusal_of(topic, message(topic, wrong))
    assert refusal.reason == "invalid_event"
    assert refusal.detail.count(named) == 1
    assert refusal.detail.count(";") == 0


@every_topic
def test_no_large_message_is_made_into_python_objects(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To check 340,000 empty lists takes milliseconds, to make them a tenth of a second."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made into objects")

    monkeypatch.setattr(json, "loads", never)
    lists = b'{"data": [' + b"[]," * 30_000 + b"[]]}"
    assert refusal_of(topic, lists).reason == "invalid_event"
    assert refusal_of(topic, lists[:-1]).reason == "not_json"
    assert refusal_of(topic, lists[9:-1]).reason == "not_an_object"


@every_topic
@pytest.mark.parametrize("field", ["event_id", "event_timestamp", "correlation_id"])
def test_a_field_that_only_informs_may_be_anything(topic: str, field: str) -> None:
    event = message(topic, {"timestamp": "2026-05-03T08:00:00Z"}, **{field: [{"a": 1}] * 3})
    decoded = DECODER.decode(topic, event, 1)
    assert decoded.batch_id == "batch-1"
    assert (decoded.event_id is None) == (field == "event_id")
    assert (decoded.correlation_id is None) == (field == "correlation_id")
