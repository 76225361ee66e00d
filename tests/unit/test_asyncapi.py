"""The description of the topics says what BCS reads and what it publishes."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.errors import UndecodableMessage
from bcs.wire import topics
from bcs.wire.asyncapi import DEAD_LETTER_HEADERS, MESSAGES, asyncapi_document
from bcs.wire.dead_letters.encode import OWN_HEADERS, REPLAYED_BY, REPLAYED_FROM
from bcs.wire.decoding import EventDecoder
from tests.support.asyncapi_file import FILE, current
from tests.support.event_schemas import accepts_value, assert_described, unresolved

ID = "550e8400-e29b-41d4-a716-446655440000"
TIME = "2026-01-31T08:00:00Z"
SPECS = "@asyncapi/specs@6.11.1"
SPELLCHECKED = {
    "entity_id": "e1",
    "batch_id": "b",
    "correlation_id": ID,
    "status": "completed",
    "corrected_text_storage_id": None,
    "error_code": None,
    "processing_duration_ms": 120,
    "timestamp": TIME,
}
JUDGED = {
    "event_name": "cj_assessment.completed",
    "entity_id": "b",
    "entity_type": "batch",
    "parent_id": None,
    "timestamp": TIME,
    "status": "completed_successfully",
    "system_metadata": {},
    "cj_assessment_job_id": "job",
    "processing_summary": {
        "total_essays": 2,
        "successful": 1,
        "failed": 1,
        "successful_essay_ids": ["e1", None],
        "failed_essay_ids": ["e2"],
        "processing_time_seconds": 1.5,
    },
}
ENDED = {
    "batch_id": "b",
    "phase_name": "nlp",
    "phase_status": "completed_with_failures",
    "processed_essays": [{"essay_id": "e1", "text_storage_id": "t1", "more": 1}],
    "failed_essay_ids": ["e2"],
    "correlation_id": ID,
}
REGISTERED = {
    "entity_id": "b",
    "expected_essay_count": 2,
    "essay_ids": ["e1", "e2"],
    "metadata": {},
    "course_code": "ENG5",
    "user_id": "u",
}


def enveloped(data: object, **fields: object) -> dict[str, Any]:
    """Data in the platform's envelope."""
    usual = {
        "event_id": ID,
        "event_type": "huleedu.some.event.v1",
        "event_timestamp": TIME,
        "source_service": "els",
        "schema_version": 1,
        "correlation_id": ID,
        "data_schema_uri": None,
        "metadata": {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
    }
    return {**usual, "data": data, **fields}


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    """A document without some members."""
    return {name: value for name, value in document.items() if name not in names}


# The tables of the platform's contract, with what it says may be different in practice.
ACCEPTED = [
    (topics.SPELLCHECK_COMPLETED, enveloped(SPELLCHECKED)),
    (topics.SPELLCHECK_COMPLETED, without(enveloped(SPELLCHECKED), "event_id", "event_timestamp", "schema_version")),
    (topics.SPELLCHECK_COMPLETED, enveloped(SPELLCHECKED, event_timestamp="not a time", event_id=5, metadata=None)),
    (topics.SPELLCHECK_COMPLETED, enveloped({**SPELLCHECKED, "status": "in_progress"}, event_type="a model's name")),
    (topics.SPELLCHECK_COMPLETED, without(enveloped(without(SPELLCHECKED, "timestamp")), "event_timestamp")),
    (topics.CJ_COMPLETED, enveloped(JUDGED)),
    (topics.CJ_COMPLETED, enveloped({**JUDGED, "status": "cj_assessment_success", "processing_summary": {}})),
    (topics.PHASE_OUTCOME, enveloped(ENDED)),
    (topics.PHASE_OUTCOME, enveloped(without(ENDED, "processed_essays", "failed_essay_ids"))),
    (topics.ESSAYS_REGISTERED, enveloped(REGISTERED, from_the_future=[1])),
]
REFUSED = [
    (topics.SPELLCHECK_COMPLETED, enveloped(without(SPELLCHECKED, "batch_id"))),
    (topics.SPELLCHECK_COMPLETED, enveloped({**SPELLCHECKED, "entity_id": " e1"})),
    (topics.SPELLCHECK_COMPLETED, enveloped({**SPELLCHECKED, "status": "done"})),
    (topics.SPELLCHECK_COMPLETED, enveloped({**SPELLCHECKED, "timestamp": "1969-12-31T00:00:00Z"})),
    (topics.CJ_COMPLETED, enveloped({**JUDGED, "processing_summary": {"failed_essay_ids": [""]}})),
    (topics.CJ_COMPLETED, enveloped(without(JUDGED, "processing_summary"))),
    (topics.PHASE_OUTCOME, enveloped(ENDED, event_timestamp="not a time")),
    (topics.PHASE_OUTCOME, enveloped({**ENDED, "processed_essays": [{"text_storage_id": "t1"}]})),
    (topics.ESSAYS_REGISTERED, enveloped({**REGISTERED, "expected_essay_count": True})),
    (topics.ESSAYS_REGISTERED, enveloped({**REGISTERED, "essay_ids": ["e1", None]})),
    (topics.ESSAYS_REGISTERED, enveloped(None)),
    (topics.ESSAYS_REGISTERED, [enveloped(REGISTERED)]),
]


def decodes(topic: str, document: object) -> bool:
    """True if BCS can use an event, and False if the event becomes a dead letter."""
    try:
        EventDecoder(PLATFORM_PHASES).decode(topic, json.dumps(document).encode(), 1_769_846_400_000)
    except UndecodableMessage:
        return False
    return True


def test_the_page_has_the_document_that_the_command_prints() -> None:
    assert FILE.read_text() == current(), "python -m tests.support.asyncapi_file writes it"


@pytest.mark.release
def test_the_document_is_asyncapi(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm has the official schema, and is not there")
    packed = subprocess.run([npm, "pack", SPECS], cwd=tmp_path, capture_output=True, text=True, check=False)
    if packed.returncode:
        pytest.skip(f"{SPECS} can't be had: {packed.stderr[-300:]}")
    with tarfile.open(tmp_path / packed.stdout.split()[-1]) as package:
        schema = package.extractfile("package/schemas/3.0.0.json")
        assert schema is not None
        validator = jsonschema_rs.validator_for(json.load(schema))
    document = asyncapi_document()
    assert [error.message for error in validator.iter_errors(document)] == []
    document["channels"][topics.PHASE_SKIPPED]["address"] = 5
    assert not validator.is_valid(document)


def test_every_topic_is_described() -> None:
    assert MESSAGES.keys() == {*topics.CONSUMED, *topics.PUBLISHED}
    document = asyncapi_document()
    assert document["channels"].keys() == MESSAGES.keys()
    sent = {topic for topic in MESSAGES if f"send.{topic}" in document["operations"]}
    assert sent == set(topics.PUBLISHED)
    assert unresolved(document) == []


def test_every_header_that_bcs_adds_is_described() -> None:
    assert DEAD_LETTER_HEADERS.keys() | {REPLAYED_FROM, REPLAYED_BY} == OWN_HEADERS


@pytest.mark.parametrize("topic", MESSAGES)
def test_the_examples_are_what_the_schema_says(topic: str) -> None:
    examples = list(MESSAGES[topic][0].examples())
    assert examples
    for value, headers in examples:
        assert_described(topic, b"key", value, headers)
        assert topic not in topics.CONSUMED or decodes(topic, json.loads(value))


@pytest.mark.parametrize(("topic", "document"), ACCEPTED)
def test_what_the_contract_allows_is_accepted(topic: str, document: object) -> None:
    accepts_value(topic).validate(document)
    assert decodes(topic, document)


@pytest.mark.parametrize(("topic", "document"), REFUSED)
def test_what_the_schema_refuses_becomes_a_dead_letter(topic: str, document: object) -> None:
    assert not accepts_value(topic).is_valid(document)
    assert not decodes(topic, document)
