"""The consumed events as the platform's producers send them: topic, key, and a valid sample of each. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from bcs.wire import topics
from bcs.wire.published import rfc3339

SAMPLE_SERVICE = "bcs-sample"
"""The `source_service` of a sample."""


class EventType(StrEnum):
    """The events that BCS reads, by the names of the platform's models."""

    SPELLCHECK_COMPLETED = "SpellcheckPhaseCompletedV1"
    CJ_COMPLETED = "CJAssessmentCompletedV1"
    PHASE_OUTCOME = "ELSBatchPhaseOutcomeV1"
    ESSAYS_REGISTERED = "BatchEssaysRegistered"

    @property
    def topic(self) -> str:
        """The topic of these events."""
        return _TOPICS[self]

    def key(self, envelope: Mapping[str, Any]) -> bytes | None:
        """The Kafka key that the platform's producer uses for such an event.

        :returns: None where the event does not have the field.
        """
        data = envelope.get("data")
        value = data.get(_KEY_FIELDS[self]) if isinstance(data, dict) else None
        return value.encode(errors="surrogatepass") if isinstance(value, str) else None


_TOPICS = {
    EventType.SPELLCHECK_COMPLETED: topics.SPELLCHECK_COMPLETED,
    EventType.CJ_COMPLETED: topics.CJ_COMPLETED,
    EventType.PHASE_OUTCOME: topics.PHASE_OUTCOME,
    EventType.ESSAYS_REGISTERED: topics.ESSAYS_REGISTERED,
}
# The key of a spellcheck event is the essay's id, so the events of one batch are spread over all partitions.
_KEY_FIELDS = {
    EventType.SPELLCHECK_COMPLETED: "entity_id",
    EventType.CJ_COMPLETED: "entity_id",
    EventType.PHASE_OUTCOME: "batch_id",
    EventType.ESSAYS_REGISTERED: "entity_id",
}


def event_type_of(name: object) -> EventType | None:
    """The event type of a topic's name or a model's name; None where the name is neither.

    Producers put the topic's name into `event_type`; older producers put the model's name there.
    """
    for event_type in EventType:
        if name in (event_type.topic, event_type.value):
            return event_type
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The batch, essays and phase of a sample event.

    :param completed: the ids of the essays that completed the phase.
    :param failed: the ids of the essays that failed in the phase.
    :param phase: the phase of an outcome; the other events have a fixed phase or none.
    """

    batch_id: str
    completed: Sequence[str]
    failed: Sequence[str] = ()
    phase: str = "spellcheck"


def sample_events(
    event_type: EventType, about: Sample, *, now: datetime, new_id: Callable[[], uuid.UUID] = uuid.uuid4
) -> list[dict[str, Any]]:
    """Valid events in their envelopes, as the platform's producers write them.

    :param now: the time of the events.
    :param new_id: makes event ids and correlation ids.
    :returns: one event for each essay where the event type is about one essay, else one event.
    """
    when = rfc3339(now)
    return [_envelope(event_type, data, when, new_id) for data in _DATA[event_type](about, when, new_id)]


def _envelope(
    event_type: EventType, data: dict[str, Any], when: str, new_id: Callable[[], uuid.UUID]
) -> dict[str, Any]:
    return {
        "event_id": str(new_id()),
        "event_type": event_type.topic,
        "event_timestamp": when,
        "source_service": SAMPLE_SERVICE,
        "schema_version": 1,
        "correlation_id": str(new_id()),
        "data_schema_uri": None,
        "data": data,
        "metadata": None,
    }


_MakeData = Callable[[Sample, str, Callable[[], uuid.UUID]], list[dict[str, Any]]]


def _spellchecked(about: Sample, when: str, new_id: Callable[[], uuid.UUID]) -> list[dict[str, Any]]:
    outcomes = [(essay, "completed") for essay in about.completed] + [(essay, "failed") for essay in about.failed]
    return [
        {
            "entity_id": essay,
            "batch_id": about.batch_id,
            "correlation_id": str(new_id()),
            "status": status,
            "corrected_text_storage_id": f"text-{essay}" if status == "completed" else None,
            "error_code": None if status == "completed" else "SPELLCHECK_FAILED",
            "processing_duration_ms": 120,
            "timestamp": when,
        }
        for essay, status in outcomes
    ]


def _cj_completed(about: Sample, when: str, new_id: Callable[[], uuid.UUID]) -> list[dict[str, Any]]:
    successful, failed = len(about.completed), len(about.failed)
    return [
        {
            "event_name": "cj_assessment.completed",
            "entity_id": about.batch_id,
            "entity_type": "batch",
            "parent_id": None,
            "timestamp": when,
            # The producer sends this status as soon as one essay succeeded.
            "status": "completed_successfully" if successful else "failed_critically",
            "system_metadata": {"entity_id": about.batch_id, "entity_type": "batch"},
            "cj_assessment_job_id": str(new_id()),
            "processing_summary": {
                "total_essays": successful + failed,
                "successful": successful,
                "failed": failed,
                "successful_essay_ids": list(about.completed),
                "failed_essay_ids": list(about.failed),
                "processing_time_seconds": 1.5,
            },
        }
    ]


def _phase_ended(about: Sample, _when: str, new_id: Callable[[], uuid.UUID]) -> list[dict[str, Any]]:
    if not about.failed:
        status = "completed_successfully"
    else:
        status = "completed_with_failures" if about.completed else "failed_critically"
    return [
        {
            "batch_id": about.batch_id,
            "phase_name": about.phase,
            "phase_status": status,
            "processed_essays": [{"essay_id": essay, "text_storage_id": f"text-{essay}"} for essay in about.completed],
            "failed_essay_ids": list(about.failed),
            "correlation_id": str(new_id()),
        }
    ]


def _registered(about: Sample, when: str, _new_id: Callable[[], uuid.UUID]) -> list[dict[str, Any]]:
    essays = [*about.completed, *about.failed]
    return [
        {
            "event": "batch.essays.registered",
            "entity_id": about.batch_id,
            "expected_essay_count": len(essays),
            "essay_ids": essays,
            "metadata": {"entity_id": about.batch_id, "entity_type": "batch", "timestamp": when},
            "course_code": "ENG5",
            "user_id": "teacher-1",
        }
    ]


_DATA: dict[EventType, _MakeData] = {
    EventType.SPELLCHECK_COMPLETED: _spellchecked,
    EventType.CJ_COMPLETED: _cj_completed,
    EventType.PHASE_OUTCOME: _phase_ended,
    EventType.ESSAYS_REGISTERED: _registered,
}
