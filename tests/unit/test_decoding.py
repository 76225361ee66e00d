"""From the bytes of the four consumed events to facts, or to a typed reason why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseOutcome, repeat_key_of
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.errors import UndecodableMessage
from bcs.wire import topics
from bcs.wire.decoding import DecodedEvent, EventDecoder

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


def outcome(
    phase: str,
    completed: tuple[str, ...] = (),
    failed: tuple[str, ...] = (),
    status: str = "completed_successfully",
    *,
    speaks_for_all: bool = False,
) -> set[Fact]:
    return {PhaseOutcome(phase, status, completed=completed, failed=failed, speaks_for_all=speaks_for_all, at_us=AT_US)}


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


@pytest.mark.parametrize(
    "status",
    [
        *("completed_successfully", "completed_with_failures", "failed_critically"),
        *("cj_assessment_success", "cj_assessment_failed", "all_processing_completed", "essay_critical_failure"),
    ],
)
def test_a_cj_completion_is_read_by_its_lists_whatever_status_ends_it(status: str) -> None:
    named = outcome("cj_assessment", ("a",), ("b",), status)
    assert cj(status, successful_essay_ids=["a"], failed_essay_ids=["b"]) == named


@pytest.mark.parametrize(
    "changed",
    [{}, {"total_essays": 3}, {"failed": 1}, {"successful": 3}, {"total_essays": None, "successful": None}],
    ids=["as they are", "total not reached", "failed count", "successful not reached", "no counts"],
)
def test_the_counts_of_a_cj_completion_say_nothing(changed: dict[str, Any]) -> None:
    assert cj(**changed) == outcome("cj_assessment", ("a", "b"))


def test_null_ids_in_a_cj_completion_are_skipped() -> None:
    named = outcome("cj_assessment", ("a",), ("b",))
    assert cj(successful_essay_ids=[None, "a"], failed_essay_ids=[None, "b"]) == named


@pytest.mark.parametrize("summary", [{}, {"successful_essay_ids": None, "failed_essay_ids": []}])
@pytest.mark.parametrize("status", ["completed_successfully", "failed_critically", "cj_assessment_success"])
def test_a_cj_completion_that_names_nobody_never_speaks_for_the_batch(status: str, summary: dict[str, Any]) -> None:
    assert facts(topics.CJ_COMPLETED, CJ, status=status, processing_summary=summary) == outcome(
        "cj_assessment", status=status
    )


def test_a_cancelled_cj_completion_marks_only_its_listed_essays() -> None:
    assert cj("cancelled", successful_essay_ids=["a"], failed_essay_ids=["b"]) == {
        essay("cj_assessment", "a"),
        essay("cj_assessment", "b", FAILED),
    }


@pytest.mark.parametrize("phase", sorted(PLATFORM_PHASES))
def test_an_outcome_of_any_platform_phase_speaks_for_those_that_it_names(phase: str) -> None:
    assert facts(topics.PHASE_OUTCOME, OUTCOME, phase_name=phase) == outcome(phase, ("a", "b"))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"phase_status": "completed_with_failures"},
            outcome("nlp", ("a", "b"), status="completed_with_failures"),
        ),
        (
            {"phase_status": "completed_with_failures", "failed_essay_ids": ["c", None]},
            outcome("nlp", ("a", "b"), ("c",), "completed_with_failures"),
        ),
        ({"failed_essay_ids": ["c"]}, outcome("nlp", ("a", "b"), ("c",))),
        ({"processed_essays": []}, outcome("nlp", speaks_for_all=True)),
        ({"processed_essays": [], "failed_essay_ids": [None]}, outcome("nlp")),
        (
            {"phase_status": "completed_with_failures", "processed_essays": []},
            outcome("nlp", status="completed_with_failures"),
        ),
        (
            {"phase_status": "failed_critically", "processed_essays": [], "failed_essay_ids": ["a", "b"]},
            outcome("nlp", (), ("a", "b"), "failed_critically"),
        ),
        (
            {"phase_status": "failed_critically", "processed_essays": []},
            outcome("nlp", status="failed_critically"),
        ),
    ],
)
def test_an_outcome_says_what_its_status_and_lists_say(changed: dict[str, Any], expected: set[Fact]) -> None:
    assert facts(topics.PHASE_OUTCOME, OUTCOME, **changed) == expected


@pytest.mark.parametrize(
    "status",
    [
        *("awaiting_content_validation", "content_ingestion_failed", "awaiting_pipeline_configuration"),
        *("ready_for_pipeline_execution", "processing_pipelines", "awaiting_student_validation"),
        *("student_validation_completed", "validation_timeout_processed"),
    ],
)
def test_statuses_that_end_nothing_change_nothing(status: str) -> None:
    assert facts(topics.PHASE_OUTCOME, OUTCOME, phase_status=status, failed_essay_ids=["c"]) == set()
    assert cj(status, failed_essay_ids=["c"]) == set()
    assert facts(topics.PHASE_OUTCOME, OUTCOME, phase_status="cancelled") == set()
    assert cj("awaiting_cj_assessment") == cj("cj_assessment_processing_in_progress") == set()


@pytest.mark.parametrize("status", ["finished", "COMPLETED_SUCCESSFULLY", "in_progress", "", None, 1])
def test_a_status_that_the_platform_does_not_have_is_refused(status: object) -> None:
    for topic, data in ((topics.PHASE_OUTCOME, {"phase_status": status}), (topics.CJ_COMPLETED, {"status": status})):
        with pytest.raises(UndecodableMessage) as refused:
            facts(topic, EVENTS[topic], **data)
        assert refused.value.reason == "invalid_event"
        assert refused.value.batch_id == "batch-1"


def test_copies_of_an_outcome_without_a_time_have_one_repeat_key() -> None:
    def key(correlation_id: str = "c", **changed: object) -> str:
        decoded = decode(topics.PHASE_OUTCOME, {**OUTCOME, **changed}, correlation_id=correlation_id)
        [fact] = decoded.facts
        assert isinstance(fact, PhaseOutcome)
        return fact.repeat_key

    assert key() == repeat_key_of("nlp", "c", "completed_successfully", ["b", "a"], [])
    assert key() == key(event_timestamp="2030-01-01T00:00:00Z", processed_essays=OUTCOME["processed_essays"][::-1])
    others = [
        key("another"),
        key(phase_name="spellcheck"),
        key(failed_essay_ids=["c"]),
        key(processed_essays=[]),
        key(processed_essays=[], phase_status="failed_critically"),
        key(processed_essays=[], failed_essay_ids=[None]),
    ]
    assert len({key(), *others}) == 7
    data = {**CJ, "timestamp": None, "processing_summary": {}}
    [of_cj] = decode(topics.CJ_COMPLETED, data, correlation_id="c").facts
    assert isinstance(of_cj, PhaseOutcome)
    assert of_cj.repeat_key != key(phase_name="cj_assessment", processed_essays=[]), "CJ never speaks for all"
    assert key(timestamp=AT) == "", "a time of its own tells copies from news"
    nobody_said = {**OUTCOME, "correlation_id": None}
    [unknown] = decode(topics.PHASE_OUTCOME, nobody_said, correlation_id=None).facts
    assert isinstance(unknown, PhaseOutcome)
    assert unknown.repeat_key == "", "without a correlation id nothing tells a copy from another outcome"


@pytest.mark.parametrize(
    ("one", "another"),
    [((["\1"], []), ([], ["\1"])), ((["a\0b"], []), (["a", "b"], [])), ((['a", "b'], []), (["a", "b"], []))],
)
def test_whatever_is_in_an_id_different_lists_have_different_keys(
    one: tuple[list[str], list[str]], another: tuple[list[str], list[str]]
) -> None:
    keys = {repeat_key_of("nlp", "c", "completed_with_failures", *lists) for lists in (one, another)}
    assert len(keys) == 2


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


@pytest.mark.parametrize("broken", [{"event_timestamp": "yesterday"}, {"event_timestamp": {}}, {"correlation_id": 7}])
def test_a_slip_in_the_envelope_costs_no_event_whose_data_has_a_time(broken: dict[str, Any]) -> None:
    decoded = decode(topics.SPELLCHECK_COMPLETED, SPELLCHECK, **broken)
    assert decoded.facts == (essay("spellcheck", "essay-1"),)


def test_without_any_time_a_malformed_one_in_the_envelope_is_refused() -> None:
    with pytest.raises(UndecodableMessage, match="event_timestamp"):
        decode(topics.PHASE_OUTCOME, OUTCOME, event_timestamp="yesterday")


@pytest.mark.parametrize("count", [True, "2", 2.5, -1, None])
def test_an_expected_count_is_a_number(count: object) -> None:
    with pytest.raises(UndecodableMessage):
        facts(topics.ESSAYS_REGISTERED, REGISTERED, expected_essay_count=count)


@pytest.mark.parametrize("blank", [" ", "\t", " a", "a ", "a\n", "\u00a0a"])
def test_ids_that_are_blank_or_have_blanks_around_them_are_refused(blank: str) -> None:
    for topic, changed in (
        (topics.SPELLCHECK_COMPLETED, {"batch_id": blank}),
        (topics.SPELLCHECK_COMPLETED, {"entity_id": blank}),
        (topics.CJ_COMPLETED, {"processing_summary": {"successful_essay_ids": [blank]}}),
        (topics.PHASE_OUTCOME, {"failed_essay_ids": [blank]}),
        (topics.PHASE_OUTCOME, {"processed_essays": [{"essay_id": blank}]}),
        (topics.ESSAYS_REGISTERED, {"essay_ids": [blank]}),
        (topics.ESSAYS_REGISTERED, {"entity_id": blank}),
    ):
        with pytest.raises(UndecodableMessage):
            facts(topic, EVENTS[topic], **changed)


@every_topic
def test_unknown_extra_fields_are_ignored(topic: str) -> None:
    plain = decode(topic, EVENTS[topic])
    extra = {"new": [{"deeper": [1e300, 10**40, "é"]}], "": None}
    assert decode(topic, {**EVENTS[topic], **extra}, **extra) == plain


@every_topic
def test_the_time_is_that_of_the_data_else_the_envelope_else_the_record(topic: str) -> None:
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


@every_topic
@pytest.mark.parametrize("field", ["event_id", "correlation_id"])
def test_ids_that_only_inform_are_kept_short_and_stay_apart(topic: str, field: str) -> None:
    usual, long = "x" * 100, "x" * 440_000
    kept = [getattr(decode(topic, EVENTS[topic], **{field: said}), field) for said in (usual, long, long + "y", long)]
    assert kept[0] == usual
    assert [len(said) for said in kept] == [100] * 4
    assert kept[1] == kept[3], "a copy says the same"
    assert len(set(kept)) == 3


def test_a_long_correlation_id_tells_outcomes_apart_as_a_whole() -> None:
    """The stored id is shortened; the repeat key is computed from the whole id."""
    said = ["x" * 200 + end for end in ("", "a", "b")]
    facts = [fact for one in said for fact in decode(topics.PHASE_OUTCOME, OUTCOME, correlation_id=one).facts]
    keys = [fact.repeat_key for fact in facts if isinstance(fact, PhaseOutcome)]
    assert keys == [repeat_key_of("nlp", one, "completed_successfully", ["a", "b"], []) for one in said]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("topic", "wrong"),
    [
        *((topic, {BATCH_FIELDS[topic]: "x" * 256}) for topic in topics.CONSUMED),
        (topics.SPELLCHECK_COMPLETED, {"entity_id": "x" * 256}),
        (topics.SPELLCHECK_COMPLETED, {"status": "x" * 440_000}),
        (topics.SPELLCHECK_COMPLETED, {"timestamp": "x" * 440_000}),
        (topics.CJ_COMPLETED, {"status": "x" * 440_000}),
        (topics.CJ_COMPLETED, {"processing_summary": {"failed_essay_ids": ["x" * 256]}}),
        (topics.PHASE_OUTCOME, {"phase_name": "x" * 440_000}),
        (topics.PHASE_OUTCOME, {"phase_status": "x" * 440_000}),
        (topics.PHASE_OUTCOME, {"processed_essays": [{"essay_id": "x" * 256}]}),
        (topics.ESSAYS_REGISTERED, {"essay_ids": ["x" * 256]}),
    ],
)
def test_what_decides_and_is_too_long_is_refused_in_few_words(topic: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UndecodableMessage) as refusal:
        decode(topic, {**EVENTS[topic], **wrong}, correlation_id="c" * 440_000)
    assert len(refusal.value.correlation_id or "") == 100
    assert len(str(refusal.value)) < 1000
