"""Encodes entries of the history: whole entries for the archive queue, their details for a column of the archive.

Entries of the previous release, which had no outcomes with lists, are decoded as this release would have written them
(`_facts_of_old`): the archive has such entries, and some may still wait in the queue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

from bcs.domain.definitions_version import DefinitionsVersion
from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
    RecordedUnder,
    repeat_key_of,
)
from bcs.domain.history import REPORTED, FactsRecorded, HistoryEntry, PhaseDecided, PipelineResolved, Position
from bcs.domain.resolve_options import PLAIN, ResolveOptions
from bcs.domain.state import TIMED

_FORM = 2
"""The format of the facts; the previous release did not write a format."""

_ListedFact = EssayPhaseEnded | PhaseOutcome | PhaseReported | PhaseInvalidated | EssaysRegistered

_ELS_OUTCOME, _CJ_OUTCOME = "ELSBatchPhaseOutcomeV1", "CJAssessmentCompletedV1"


def encode_detail(entry: HistoryEntry) -> str:
    """The parts of an entry without a column of their own, as JSON; a NUL is written as `\\u0000`.

    :raises ValueError: a text can't be encoded.
    """
    if isinstance(entry, PipelineResolved):
        resolved: dict[str, Any] = {
            "asked_by": entry.asked_by,
            "pipeline": entry.pipeline,
            "version": entry.version,
            "source": entry.source,
            "registered": entry.registered,
            "decisions": [[one.phase, one.runs, one.reason, one.reason_text] for one in entry.decisions],
        }
        if entry.options is not PLAIN:
            resolved["options"] = entry.options.given()
        if entry.definitions is not None:
            resolved["definitions"] = [entry.definitions.version, entry.definitions.content_hash]
        return to_json(resolved).decode()
    document: dict[str, Any] = {
        "event_type": entry.event_type,
        "form": _FORM,
        "facts": [_fact(fact) for fact in entry.facts if not isinstance(fact, RecordedUnder)],
    }
    # Apart from the others, because the release before refuses an entry with a fact that it does not know.
    if under := [fact for fact in entry.facts if isinstance(fact, RecordedUnder)]:
        document["recorded_under"] = [[fact.phase, fact.definition, fact.at_us] for fact in under]
    if entry.asked_by is not None:
        document["asked_by"] = entry.asked_by
    if entry.reason is not None:
        document["reason"] = entry.reason
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
    """An entry from its details and its columns.

    :raises ValueError: `encode_detail` did not write these details.
    """
    document = from_json(detail, cache_strings="keys")
    try:
        if resolution:
            return PipelineResolved(
                entry_id,
                batch_id,
                at_us,
                correlation_id=correlation_id or "",
                asked_by=document["asked_by"],
                pipeline=document["pipeline"],
                decisions=tuple(PhaseDecided(*decision) for decision in document["decisions"]),
                version=document["version"],
                source=document["source"],
                registered=document.get("registered"),
                options=ResolveOptions.of(document.get("options", {})),
                definitions=DefinitionsVersion(*document["definitions"]) if "definitions" in document else None,
            )
        if document.get("form") == _FORM:
            facts = tuple(map(_fact_from, document["facts"]))
            facts += tuple(RecordedUnder(*parts) for parts in document.get("recorded_under", ()))
        else:
            facts = _facts_of_old(document["event_type"], correlation_id, document["facts"])
        return FactsRecorded(
            entry_id,
            batch_id,
            at_us,
            facts=facts,
            event_type=document["event_type"],
            correlation_id=correlation_id,
            event_id=event_id,
            position=position,
            asked_by=document.get("asked_by"),
            reason=document.get("reason"),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not an entry's details: {error!r}") from None


def encode_entry(entry: HistoryEntry) -> bytes:
    """A whole entry as JSON."""
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


def is_entry_about(raw: bytes, batch_id: str) -> bool:
    """True if `encode_entry` encoded an entry about this batch."""
    if to_json(batch_id) not in raw:
        return False  # nearly always; the rest takes a thousand times as long
    try:
        return bool(from_json(raw)[2] == batch_id)
    except (ValueError, LookupError, TypeError):
        return False


def decode_entry(raw: bytes) -> HistoryEntry:
    """The entry that `encode_entry` encoded.

    :raises ValueError: `encode_entry` did not write this text.
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


def _fact(fact: _ListedFact) -> list[Any]:
    if isinstance(fact, EssayPhaseEnded):
        return ["essay", fact.phase, fact.essay_id, fact.outcome.value, fact.at_us]
    if isinstance(fact, PhaseOutcome):
        lists = fact.completed, fact.failed
        return ["outcome", fact.phase, fact.status, *lists, fact.speaks_for_all, fact.at_us, fact.repeat_key]
    if isinstance(fact, PhaseReported):
        return ["report", fact.phase, fact.outcome.value, fact.at_us]
    if isinstance(fact, PhaseInvalidated):
        return ["invalid", fact.phase, fact.essay_id, fact.at_us]
    return ["roster", fact.essay_ids, fact.expected_count, fact.at_us]


def _fact_from(parts: list[Any]) -> Fact:
    kind, *fields = parts
    if kind == "essay":
        phase, essay_id, outcome, at_us = fields
        return EssayPhaseEnded(phase, essay_id, Outcome(outcome), at_us)
    if kind == "outcome":
        phase, status, completed, failed, speaks_for_all, at_us, repeat_key = fields
        return PhaseOutcome(
            phase,
            status,
            completed=tuple(completed),
            failed=tuple(failed),
            speaks_for_all=speaks_for_all,
            at_us=at_us,
            repeat_key=repeat_key,
        )
    if kind == "report":
        phase, outcome, at_us = fields
        return PhaseReported(phase, Outcome(outcome), at_us)
    if kind == "invalid":
        phase, essay_id, at_us = fields
        return PhaseInvalidated(phase, essay_id, at_us)
    if kind == "roster":
        essay_ids, expected_count, at_us = fields
        return EssaysRegistered(tuple(essay_ids), expected_count, at_us)
    raise ValueError(f"a fact of the kind {kind!r}")


def _facts_of_old(event_type: str, correlation_id: str | None, written: Sequence[list[Any]]) -> tuple[Fact, ...]:
    """The facts of an entry that the previous release wrote.

    That release turned an outcome into one fact for each essay, and one for the batch where it believed that no essay
    was left out, or where no essay was listed. All facts of the entry together show what the outcome was.
    """
    if event_type not in (_ELS_OUTCOME, _CJ_OUTCOME):
        return tuple(_old_fact_from(event_type, parts) for parts in written)
    essays: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"c": [], "f": []})
    batch: dict[str, str] = {}
    times: dict[str, int] = {}
    for kind, phase, *fields in written:
        times[phase] = fields[-1]
        if kind == "essay":
            essay_id, outcome, _ = fields
            essays[phase][outcome].append(essay_id)
        else:
            batch[phase], _ = fields
    facts: list[Fact] = []
    for phase, at_us in times.items():
        completed, failed = tuple(essays[phase]["c"]), tuple(essays[phase]["f"])
        status = _old_status(batch.get(phase), completed, failed)
        if event_type == _CJ_OUTCOME:
            facts.append(
                PhaseOutcome(
                    phase,
                    status,
                    completed=completed,
                    failed=failed,
                    speaks_for_all=False,
                    at_us=at_us,
                    repeat_key=TIMED,
                )
            )
        else:
            without_lists = batch.get(phase) == "c" and not completed and not failed
            key = repeat_key_of(phase, correlation_id, status, completed, failed) if correlation_id else TIMED
            facts.append(
                PhaseOutcome(
                    phase,
                    status,
                    completed=completed,
                    failed=failed,
                    speaks_for_all=without_lists,
                    at_us=at_us,
                    repeat_key=key,
                )
            )
    return tuple(facts)


def _old_fact_from(event_type: str, parts: list[Any]) -> Fact:
    if parts[0] != "batch":
        return _fact_from(parts)
    if event_type != REPORTED:
        raise ValueError(f"a whole batch's outcome in an entry of {event_type!r}")
    return _fact_from(["report", *parts[1:]])


def _old_status(batch: str | None, completed: Sequence[str], failed: Sequence[str]) -> str:
    """The most probable status, because the previous release did not store it."""
    if batch == "c":
        return "completed_successfully"
    return "completed_with_failures" if completed else "failed_critically"
