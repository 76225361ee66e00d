"""Events with fixed times and ids, as the platform's producers write them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from bcs.wire import topics
from tests.support.events import Event, event
from tests.surface.placeholders import FIXED_DAY

ESSAYS = ("essay-1", "essay-2", "essay-3")


def fixed_time(second: int) -> str:
    """A moment of the fixed day."""
    return f"{FIXED_DAY}T08:00:{second:02}.000000Z"


def registered(batch_id: str, second: int, *, essays: Sequence[str] = ESSAYS) -> Event:
    """These essays belong to the batch."""
    data = {"entity_id": batch_id, "expected_essay_count": len(essays), "essay_ids": list(essays)}
    return _event(topics.ESSAYS_REGISTERED, batch_id, data, second)


def spellchecked(batch_id: str, second: int, essay: str, status: str) -> Event:
    """An essay's spellcheck ended. It has a time of its own."""
    data = {"entity_id": essay, "batch_id": batch_id, "status": status, "timestamp": fixed_time(second)}
    return _event(topics.SPELLCHECK_COMPLETED, essay, data, second)


def judged(batch_id: str, second: int, successful: Sequence[str], failed: Sequence[str]) -> Event:
    """Comparative judgement ended. It has a time of its own."""
    lists = {"successful_essay_ids": list(successful), "failed_essay_ids": list(failed)}
    data = {
        "entity_id": batch_id,
        "status": "completed_with_failures",
        "processing_summary": lists,
        "timestamp": fixed_time(second),
    }
    return _event(topics.CJ_COMPLETED, batch_id, data, second)


def ended(batch_id: str, second: int, phase: str, processed: Sequence[str], failed: Sequence[str] = ()) -> Event:
    """A phase ended for a batch. It has no time of its own."""
    data = {
        "batch_id": batch_id,
        "phase_name": phase,
        "phase_status": "completed_with_failures" if failed else "completed_successfully",
        "processed_essays": [{"essay_id": essay} for essay in processed],
        "failed_essay_ids": list(failed),
    }
    return _event(topics.PHASE_OUTCOME, batch_id, data, second)


def fixed_id(number: int) -> str:
    """A UUID."""
    return str(uuid.UUID(int=number))


def _event(topic: str, key: str, data: dict[str, Any], second: int) -> Event:
    ids = {"event_id": f"event-{second}", "correlation_id": f"said-{second}"}
    return event(topic, key, data, event_timestamp=fixed_time(second), **ids)
