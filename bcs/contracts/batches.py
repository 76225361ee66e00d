"""What is known of a batch, and its past, as the documents that the service and the commands answer with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bcs.domain.facts import EssayPhaseEnded, Fact, Outcome, PhaseInvalidated, PhaseOutcome, PhaseReported
from bcs.domain.history import FactsRecorded, KeptEntry, PipelineResolved, Position
from bcs.domain.progress import PhaseExplanation
from bcs.domain.state import BatchState, Ending, Mark
from bcs.domain.times import format_timestamp

# Where a state was read.
REDIS, POSTGRESQL, MEMORY = "redis", "postgresql", "memory"

OUTCOMES = {Outcome.COMPLETED: "completed", Outcome.FAILED: "failed"}


def phases_to_show(state: BatchState, configured: Iterable[str]) -> list[str]:
    """The configured phases, then others that any mark is about."""
    listed = list(configured)
    return [*listed, *sorted(state.phases.difference(listed))]


def state_document(
    batch_id: str, state: BatchState, version: int | None, source: str, reports: Sequence[PhaseExplanation]
) -> dict[str, Any]:
    """Everything that is known of a batch.

    :param version: None where its source counts none.
    :param source: `REDIS`, `POSTGRESQL` or `MEMORY`.
    """
    expected = state.expected
    return {
        "batch_id": batch_id,
        "version": version,
        "source": source,
        "registered": expected is not None,
        "expected": {"count": expected.count, "at": format_timestamp(expected.at_us)} if expected else None,
        "known_essays": [
            {"essay_id": essay, "known_since": format_timestamp(since)}
            for essay, since in sorted(state.first_seen_us.items())
        ],
        "phases": [_phase(of) for of in reports],
    }


def history_document(batch_id: str, entries: Iterable[KeptEntry], following: str | int | None) -> dict[str, Any]:
    """A page of a batch's history.

    :param following: how to ask for the page with what is older; None when nothing is.
    """
    return {"batch_id": batch_id, "entries": [_entry(kept) for kept in entries], "next": following}


def _phase(of: PhaseExplanation) -> dict[str, Any]:
    progress = of.progress
    return {
        "phase": of.phase,
        "complete": progress.complete,
        "complete_when": of.complete_when.value,
        "completed": progress.completed,
        "failed": progress.failed,
        "failed_before": progress.failed_before,
        "left_out": progress.left_out,
        "outstanding": of.outstanding,
        "missing": of.missing,
        "newest_mark_at": format_timestamp(of.newest.at_us) if of.newest else None,
        "report": _mark(of.report),
        "outcome": _ending(of.outcome),
        "held_back_by": [
            {
                "essay_id": essay.essay_id,
                "why": essay.why.value,
                "known_since": format_timestamp(essay.first_seen_us),
                "mark": _mark(essay.mark),
            }
            for essay in of.held_back_by
        ],
    }


def _mark(mark: Mark | None) -> dict[str, str] | None:
    return {"outcome": OUTCOMES[mark.outcome], "at": format_timestamp(mark.at_us)} if mark else None


def _ending(ending: Ending | None) -> dict[str, str] | None:
    return {"status": ending.status, "at": format_timestamp(ending.at_us)} if ending else None


def _entry(kept: KeptEntry) -> dict[str, Any]:
    entry = kept.entry
    kind, particulars = (
        ("resolution", _resolution(entry)) if isinstance(entry, PipelineResolved) else ("facts", _recorded(entry))
    )
    return {
        "number": kept.number,
        "recorded_at": format_timestamp(entry.at_us),
        "kind": kind,
        "correlation_id": entry.correlation_id,
        **particulars,
    }


def _recorded(entry: FactsRecorded) -> dict[str, Any]:
    return {
        "event_type": entry.event_type,
        "event_id": entry.event_id,
        "source": _position(entry.position),
        "reported_by": entry.asked_by,
        "facts": [_fact(fact) for fact in entry.facts],
    }


def _resolution(entry: PipelineResolved) -> dict[str, Any]:
    return {
        "asked_by": entry.asked_by,
        "pipeline": entry.pipeline,
        "final_pipeline": [decision.phase for decision in entry.decisions if decision.runs],
        "pruned_phases": [decision.phase for decision in entry.decisions if not decision.runs],
        "decisions": [
            {
                "phase": decision.phase,
                "runs": decision.runs,
                "reason": decision.reason,
                "because": decision.because,
            }
            for decision in entry.decisions
        ],
        "registered": entry.registered,
        "state_version": entry.version,
        "source": entry.source,
    }


def _position(position: Position | None) -> dict[str, Any] | None:
    if position is None:
        return None
    return {"topic": position.topic, "partition": position.partition, "offset": position.offset}


def _fact(fact: Fact) -> dict[str, Any]:
    at = format_timestamp(fact.at_us)
    if isinstance(fact, EssayPhaseEnded):
        outcome = OUTCOMES[fact.outcome]
        return {
            "fact": "essay_phase_ended",
            "phase": fact.phase,
            "essay_id": fact.essay_id,
            "outcome": outcome,
            "at": at,
        }
    if isinstance(fact, PhaseOutcome):
        return {
            "fact": "phase_outcome",
            "phase": fact.phase,
            "status": fact.status,
            "completed": list(fact.completed),
            "failed": list(fact.failed),
            "speaks_for_all": fact.speaks_for_all,
            "at": at,
        }
    if isinstance(fact, PhaseReported):
        return {"fact": "phase_reported", "phase": fact.phase, "outcome": OUTCOMES[fact.outcome], "at": at}
    if isinstance(fact, PhaseInvalidated):
        return {"fact": "phase_invalidated", "phase": fact.phase, "essay_id": fact.essay_id, "at": at}
    return {
        "fact": "essays_registered",
        "essay_ids": list(fact.essay_ids),
        "expected_count": fact.expected_count,
        "at": at,
    }
