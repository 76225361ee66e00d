"""How an entry of the history is written down: in the queue before the record as a whole, in the record its details."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

from bcs.domain.facts import BatchPhaseEnded, EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.history import FactsRecorded, HistoryEntry, PhaseDecided, PipelineResolved, Position


def encode_detail(entry: HistoryEntry) -> str:
    """What has no column of its own, as JSON; it holds `\\u0000` as it is written, never a NUL.

    :raises ValueError: a text in it can't be written.
    """
    if isinstance(entry, PipelineResolved):
        return to_json(
            {
                "asked_by": entry.asked_by,
                "pipeline": entry.pipeline,
                "version": entry.version,
                "source": entry.source,
                "decisions": [[one.phase, one.runs, one.reason, one.because] for one in entry.decisions],
            }
        ).decode()
    document: dict[str, Any] = {"event_type": entry.event_type, "facts": [_fact(fact) for fact in entry.facts]}
    if entry.asked_by is not None:
        document["asked_by"] = entry.asked_by
    return to_json(document).decode()


def decode_detail(
    resolution: bool,
    detail: str | bytes,
    *,
    entry_id: UUID,
    batch_id: str,
    at_us: int,
    correlation_id: str | None,
    event_id: str | None,
    position: Position | None,
) -> HistoryEntry:
    """An entry from its details and what stands beside them.

    :raises ValueError: it was not written by `encode_detail`.
    """
    document = from_json(detail)
    try:
        if resolution:
            return PipelineResolved(
                entry_id,
                batch_id,
                at_us,
                correlation_id or "",
                document["asked_by"],
                document["pipeline"],
                tuple(PhaseDecided(*decision) for decision in document["decisions"]),
                document["version"],
                document["source"],
            )
        facts = tuple(map(_fact_from, document["facts"]))
        return FactsRecorded(
            entry_id,
            batch_id,
            at_us,
            facts,
            document["event_type"],
            correlation_id,
            event_id,
            position,
            document.get("asked_by"),
        )
    except (LookupError, TypeError) as error:
        raise ValueError(f"not an entry's details: {error!r}") from None


def encode_entry(entry: HistoryEntry) -> bytes:
    """An entry as a whole, as JSON."""
    resolution = isinstance(entry, PipelineResolved)
    position = None if isinstance(entry, PipelineResolved) else entry.position
    return to_json(
        [
            resolution,
            str(entry.entry_id),
            entry.batch_id,
            entry.at_us,
            entry.correlation_id,
            None if isinstance(entry, PipelineResolved) else entry.event_id,
            [position.topic, position.partition, position.offset] if position else None,
            encode_detail(entry),
        ]
    )


def decode_entry(raw: bytes) -> HistoryEntry:
    """What `encode_entry` was given.

    :raises ValueError: it was not written by it.
    """
    try:
        resolution, entry_id, batch_id, at_us, correlation_id, event_id, position, detail = from_json(raw)
        return decode_detail(
            resolution,
            detail,
            entry_id=UUID(entry_id),
            batch_id=batch_id,
            at_us=at_us,
            correlation_id=correlation_id,
            event_id=event_id,
            position=Position(*position) if position else None,
        )
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not an entry: {error!r}") from None


def _fact(fact: Fact) -> list[Any]:
    if isinstance(fact, EssayPhaseEnded):
        return ["essay", fact.phase, fact.essay_id, fact.outcome.value, fact.at_us]
    if isinstance(fact, BatchPhaseEnded):
        return ["batch", fact.phase, fact.outcome.value, fact.at_us]
    return ["roster", fact.essay_ids, fact.expected_count, fact.at_us]


def _fact_from(parts: list[Any]) -> Fact:
    kind, *rest = parts
    if kind == "essay":
        phase, essay_id, outcome, at_us = rest
        return EssayPhaseEnded(phase, essay_id, Outcome(outcome), at_us)
    if kind == "batch":
        phase, outcome, at_us = rest
        return BatchPhaseEnded(phase, Outcome(outcome), at_us)
    essay_ids, expected_count, at_us = rest
    return EssaysRegistered(tuple(essay_ids), expected_count, at_us)
