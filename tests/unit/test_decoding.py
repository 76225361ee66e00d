"""From the bytes of the four consumed events to facts, or to a typed reason why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bcs.contracts import topics
from bcs.contracts.decoding import DecodedEvent, EventDecoder
from bcs.domain.facts import BatchPhaseEnded, EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.pipelines import PLATFORM_PHASES

DECODER = EventDecoder(PLATFORM_PHASES)
RECORD_MS = 1_700_000_000_123
AT = "2024-11-23T10:00:00.000001Z"
AT_US = 1_732_356_000_000_001
COMPLETED, FAILED = Outcome.COMPLETED, Outcome.FAILED

SPELLCHECK: dict[str, Any] = {
    "entity_id": "essay-1",
    "batch_id": "batch-1",
    "correlation_id": "550e8400-e29b-41d4-a716-446655440000",
    "status": "completed",
    "corrected_text_storage_id": "text-1",
    "error_code": None,
    "processing_duration_ms": 12,
    "timestamp": AT,
}
CJ: dict[str, Any] = {
    "event_name": "cj_assessment.completed",
    "entity_id": "batch-1",
    "entity_type": "batch",
    "parent_id": None,
    "timestamp": AT,
    "status": "completed_successfully",
    "system_metadata": {},
    "cj_assessment_job_id": "job-1",
    "processing_summary": {
        "total_essays": 2,
        "successful": 2,
        "failed": 0,
        "successful_essay_ids": ["a", "b"],
        "failed_essay_ids": [],
        "processing_time_seconds": 1.5,
    },
}
OUTCOME: dict[str, Any] = {
    "batch_id": "batch-1",
    "phase_name": "nlp",
    "phase_status": "completed_successfully",
    "processed_essays": [{"essay_id": "a", "text_storage_id": "t"}, {"essay_id": "b", "text_storage_id": "t"}],
    "failed_essay_ids": [],
    "correlation_id": "550e8400-e29b-41d4-a716-446655440000",
}
REGISTERED: dict[str, Any] = {
    "entity_id": "batch-1",
    "expected_essay_count": 2,
    "essay_ids": ["a", "b"],
    "metadata": {"entity_id": "batch-1"},
    "course_code": "ENG5",
    "user_id": "user-1",
    "timestamp": AT,
}
EVENTS = {
    topics.SPELLCHECK_COMPLETED: SPELLCHECK,
    topics.CJ_COMPLETED: CJ,
    topics.PHASE_OUTCOME: OUTCOME,
    topics.ESSAYS_REGISTERED: REGISTERED,
}
BATCH_FIELDS = {
    topics.SPELLCHECK_COMPLETED: "batch_id",
    topics.CJ_COMPLETED: "entity_id",
    topics.PHASE_OUTCOME: "batch_id",
    topics.ESSAYS_REGISTERED: "entity_id",
}
every_topic = pytest.mark.parametrize("topic", topics.CONSUMED)


def envelope(data: object, **others: object) -> dict[str, Any]:
    return {
        "event_id": "6f0ff5e0-4a52-4b8f-9d33-2b1a7c9f5d10",
        "event_type": "whatever the producer calls it",
        "event_timestamp": "2024-11-23T11:00:00Z",
        "source_service": "some_service",
        "schema_version": 1,
        "correlation_id": "7b7b2c36-0a3b-4f2e-8a55-6d5a1f0e9c11",
        "data_schema_uri": None,
        "data": data,
        "metadata": {"traceparent": "00-1-2-03"},
        **others,
    }


def decode(topic: str, data: object, **others: object) -> DecodedEvent:
    return DECODER.decode(topic, json.dumps(envelope(data, **others)).encode(), RECORD_MS)


def facts(topic: str, data: dict[str, Any], **changed: object) -> set[Fact]:
    return set(decode(topic, {**data, "timestamp": AT, **changed}).facts)


def cj(status: str = "completed_successfully", **changed: object) -> set[Fact]:
    return facts(topics.CJ_COMPLETED, CJ, status=status, processing_summary={**CJ["processing_summary"], **changed})


def essay(phase: str, essay_id: str, outcome: Outcome = COMPLETED) -> EssayPhaseEnded:
    return EssayPhaseEnded(phase, essay_id, outcome, AT_US)


def batch(phase: str, outcome: Outcome = COMPLETED) -> BatchPhaseEnded:
    return BatchPhaseEnded(phase, outcome, AT_US)


@every_topic
def test_an_event_names_its_type_batch_and_correlation(topic: str) -> None:
    decoded = decode(topic, EVENTS[topic])
    assert decoded.batch_id == "batch-1"
    assert decoded.correlation_id == "7b7b2c36-0a3b-4f2e-8a55-6d5a1f0e9c11"
    assert decoded.event_type == DECODER.event_type(topic)
    assert decoded.facts


def test_the_event_types_are_the_models_names() -> None:
    assert [DECODER.event_type(topic) for topic in topics.CONSUMED] == [
        "SpellcheckPhaseCompletedV1",
        "CJAssessmentCompletedV1",
        "ELSBatchPhaseOutcomeV1",
        "BatchEssaysRegistered",
    ]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("completed", {essay("spellcheck", "essay-1")}),
        ("failed", {essay("spellcheck", "essay-1", FAILED)}),
        ("pending", set()),
        ("in_progress", set()),
    ],
)
def test_a_spellcheck_event_marks_its_essay_once_it_has_ended(status: str, expected: set[Fact]) -> None:
    assert facts(topics.SPELLCHECK_COMPLETED, SPELLCHECK, status=status) == expected


def test_a_cj_completion_without_failures_marks_essays_and_batch() -> None:
    done = {essay("cj_assessment", "a"), essay("cj_assessment", "b"), batch("cj_assessment")}
    assert cj() == done
    assert cj("completed_with_failures") == done  # the two lists are what counts
    assert cj(total_essays=None, successful=None, failed=None) == done


@pytest.mark.parametrize("status", ["completed_successfully", "completed_with_failures", "failed_critically"])
def test_a_cj_completion_with_a_failed_id_marks_no_batch(status: str) -> None:
    assert cj(status, successful_essay_ids=["a"], failed_essay_ids=["b"]) == {
        essay("cj_assessment", "a"),
        essay("cj_assessment", "b", FAILED),
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"successful_essay_ids": ["a", "b"], "failed_essay_ids": [None]},
        {"successful_essay_ids": ["a", "b"], "failed": 1},
        {"successful_essay_ids": ["a", "b"], "total_essays": 3},
        {"successful_essay_ids": ["a", "b"], "total_essays": None, "successful": 3},
        {"successful_essay_ids": ["a", "b", "a"], "total_essays": 3},
    ],
    ids=["null failed id", "failed count", "total not reached", "successful not reached", "one id twice"],
)
def test_a_cj_completion_with_an_unaccounted_essay_marks_no_batch(changed: dict[str, Any]) -> None:
    assert cj(**changed) == {essay("cj_assessment", "a"), essay("cj_assessment", "b")}


def test_null_ids_in_a_cj_completion_are_skipped() -> None:
    assert cj(total_essays=4, successful_essay_ids=[None, "a"], failed_essay_ids=[None, "b"]) == {
        essay("cj_assessment", "a"),
        essay("cj_assessment", "b", FAILED),
    }


@pytest.mark.parametrize("status", ["completed_successfully", "completed_with_failures"])
def test_a_cj_completion_that_names_nobody_says_nothing(status: str) -> None:
    assert cj(status, successful_essay_ids=[], failed_essay_ids=[]) == set()


def test_a_critical_cj_failure_that_names_nobody_fails_the_batch() -> None:
    assert cj("failed_critically", successful_essay_ids=[], failed_essay_ids=[]) == {batch("cj_assessment", FAILED)}
    assert cj("failed_critically", successful_essay_ids=[], failed_essay_ids=[None]) == {batch("cj_assessment", FAILED)}


@pytest.mark.parametrize("phase", sorted(PLATFORM_PHASES))
def test_an_outcome_of_any_platform_phase_that_all_passed_marks_essays_and_batch(phase: str) -> None:
    expected = {essay(phase, "a"), essay(phase, "b"), batch(phase)}
    assert facts(topics.PHASE_OUTCOME, OUTCOME, phase_name=phase) == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"phase_status": "completed_with_failures"}, {essay("nlp", "a"), essay("nlp", "b")}),
        (
            {"phase_status": "completed_with_failures", "failed_essay_ids": ["c", None]},
            {essay("nlp", "a"), essay("nlp", "b"), essay("nlp", "c", FAILED)},
        ),
        ({"failed_essay_ids": ["c"]}, {essay("nlp", "a"), essay("nlp", "b"), essay("nlp", "c", FAILED)}),
        ({"processed_essays": []}, {batch("nlp")}),
        (
            {"phase_status": "failed_critically", "processed_essays": [], "failed_essay_ids": ["a", "b"]},
            {essay("nlp", "a", FAILED), essay("nlp", "b", FAILED)},
        ),
        ({"phase_status": "failed_critically", "processed_essays": []}, {batch("nlp", FAILED)}),
    ],
)
def test_an_outcome_marks_what_its_status_and_lists_say(changed: dict[str, Any], expected: set[Fact]) -> None:
    assert facts(topics.PHASE_OUTCOME, OUTCOME, **changed) == expected


@pytest.mark.parametrize(
    "status", ["cancelled", "awaiting_content_validation", "ready_for_pipeline_execution", "in_progress", "never heard"]
)
def test_statuses_that_end_nothing_change_nothing(status: str) -> None:
    assert facts(topics.PHASE_OUTCOME, OUTCOME, phase_status=status, failed_essay_ids=["c"]) == set()
    assert cj(status, failed_essay_ids=["c"]) == set()


def test_a_registration_says_who_belongs_and_how_many_are_expected() -> None:
    assert facts(topics.ESSAYS_REGISTERED, REGISTERED) == {EssaysRegistered(("a", "b"), 2, AT_US)}
    assert facts(topics.ESSAYS_REGISTERED, REGISTERED, essay_ids=[], expected_essay_count=0) == {
        EssaysRegistered((), 0, AT_US)
    }


@every_topic
def test_only_the_data_is_needed(topic: str) -> None:
    bare = DECODER.decode(topic, json.dumps({"data": EVENTS[topic]}).encode(), RECORD_MS)
    assert bare.correlation_id is None
    assert bare.facts
    nulls = dict.fromkeys(("event_id", "event_timestamp", "schema_version", "correlation_id", "metadata"))
    assert decode(topic, EVENTS[topic], **nulls) == bare


@every_topic
def test_unknown_extra_fields_are_ignored(topic: str) -> None:
    plain = decode(topic, EVENTS[topic])
    extra = {"new": [{"deeper": [1e300, 10**40, "é"]}], "": None}
    assert decode(topic, {**EVENTS[topic], **extra}, **extra) == plain


@every_topic
def test_the_data_s_own_time_goes_before_the_envelope_s_and_that_before_the_record_s(topic: str) -> None:
    data = {name: value for name, value in EVENTS[topic].items() if name != "timestamp"}
    assert {fact.at_us for fact in decode(topic, {**data, "timestamp": AT}).facts} == {AT_US}
    for absent in (data, {**data, "timestamp": None}):
        assert {fact.at_us for fact in decode(topic, absent).facts} == {1_732_359_600_000_000}
        assert {fact.at_us for fact in decode(topic, absent, event_timestamp=None).facts} == {RECORD_MS * 1000}


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("2024-11-23T10:00:00.000001", AT_US),  # without a zone: UTC
        ("2024-11-23T11:30:00.000001+01:30", AT_US),
        ("2255-06-05T23:47:34.740993Z", 9_007_199_254_740_993),  # not a float
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
    ],
)
def test_times_are_exact_to_the_microsecond(text: str, at_us: int) -> None:
    assert {fact.at_us for fact in decode(topics.SPELLCHECK_COMPLETED, {**SPELLCHECK, "timestamp": text}).facts} == {
        at_us
    }


@every_topic
def test_a_batch_id_of_255_characters_is_taken(topic: str) -> None:
    assert decode(topic, {**EVENTS[topic], BATCH_FIELDS[topic]: "😀" * 255}).batch_id == "😀" * 255
