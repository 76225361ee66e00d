"""The envelopes and the four consumed events, as the platform's producers write them."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bcs.wire import topics


@dataclass(frozen=True)
class Event:
    """One Kafka message to be."""

    topic: str
    key: bytes
    value: bytes


def now(offset_seconds: float = 0.0) -> str:
    """The present, or a moment before or after it, as the producers write it."""
    return (datetime.now(UTC) + timedelta(seconds=offset_seconds)).isoformat().replace("+00:00", "Z")


def envelope(topic: str, data: dict[str, Any], **fields: object) -> dict[str, Any]:
    """The envelope around ``data``; ``fields`` stand above the usual ones."""
    return {
        "event_id": str(uuid.uuid4()),
        "event_type": topic,
        "event_timestamp": now(),
        "source_service": "tests",
        "schema_version": 1,
        "correlation_id": str(uuid.uuid4()),
        "data_schema_uri": None,
        "data": data,
        "metadata": {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
        "a_field_from_the_future": {"ignored": True},
        **fields,
    }


def event(topic: str, key: str, data: dict[str, Any], **fields: object) -> Event:
    """A message in its envelope."""
    return Event(topic, key.encode(), json.dumps(envelope(topic, data, **fields)).encode())


def registered(batch_id: str, essay_ids: Sequence[str], expected: int | None = None) -> Event:
    """BatchEssaysRegistered."""
    data = {
        "event": "batch.essays.registered",
        "entity_id": batch_id,
        "expected_essay_count": len(essay_ids) if expected is None else expected,
        "essay_ids": list(essay_ids),
        "metadata": {"entity_id": batch_id, "entity_type": "batch", "timestamp": now()},
        "course_code": "ENG5",
        "user_id": "teacher-1",
    }
    return event(topics.ESSAYS_REGISTERED, batch_id, data)


def spellchecked(
    batch_id: str, essay_id: str, status: str = "completed", at: str | None = None, **fields: object
) -> Event:
    """SpellcheckPhaseCompletedV1, the thin one; its key is the essay's id."""
    failed = status == "failed"
    data = {
        "entity_id": essay_id,
        "batch_id": batch_id,
        "correlation_id": str(uuid.uuid4()),
        "status": status,
        "corrected_text_storage_id": None if failed else f"text-{essay_id}",
        "error_code": "SPELLCHECK_FAILED" if failed else None,
        "processing_duration_ms": 120,
        "timestamp": at or now(),
    }
    return event(topics.SPELLCHECK_COMPLETED, essay_id, data, **fields)


def cj_completed(batch_id: str, successful: Sequence[str | None], failed: Sequence[str | None] = ()) -> Event:
    """CJAssessmentCompletedV1: it says "completed_successfully" as soon as one essay succeeded."""
    data = {
        "event_name": "cj_assessment.completed",
        "entity_id": batch_id,
        "entity_type": "batch",
        "parent_id": None,
        "timestamp": now(),
        "status": "completed_successfully" if successful else "failed_critically",
        "system_metadata": {"entity_id": batch_id, "entity_type": "batch"},
        "cj_assessment_job_id": str(uuid.uuid4()),
        "processing_summary": {
            "total_essays": len(successful) + len(failed),
            "successful": len(successful),
            "failed": len(failed),
            "successful_essay_ids": list(successful),
            "failed_essay_ids": list(failed),
            "processing_time_seconds": 1.5,
        },
    }
    return event(topics.CJ_COMPLETED, batch_id, data)


def phase_outcome(
    batch_id: str,
    phase: str,
    processed: Sequence[str],
    failed: Sequence[str] = (),
    status: str | None = None,
) -> Event:
    """ELSBatchPhaseOutcomeV1: no timestamp of its own."""
    if status is None:
        status = "completed_with_failures" if failed else "completed_successfully"
    data = {
        "batch_id": batch_id,
        "phase_name": phase,
        "phase_status": status,
        "processed_essays": [{"essay_id": essay, "text_storage_id": f"text-{essay}"} for essay in processed],
        "failed_essay_ids": list(failed),
        "correlation_id": str(uuid.uuid4()),
    }
    return event(topics.PHASE_OUTCOME, batch_id, data)
