"""What is known of a batch, and its past, as the documents that the service and the commands answer with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bcs.contracts.times import moment
from bcs.domain.facts import BatchPhaseEnded, EssayPhaseEnded, Fact, Outcome
from bcs.domain.history import FactsRecorded, KeptEntry, PipelineResolved, Position
from bcs.domain.obstacles import PhaseReport
from bcs.domain.state import BatchState, Mark

# Where a state was read.
REDIS, POSTGRESQL, MEMORY = "redis", "postgresql", "memory"

OUTCOMES = {Outcome.COMPLETED: "completed", Outcome.FAILED: "failed"}


def phases_to_show(state: BatchState, configured: Iterable[str]) -> list[str]:
    """The configured phases, then others that any mark is about."""
    listed = list(configured)
    return [*listed, *sorted(state.phases.difference(listed))]


def state_document(
    batch_id: str, state: BatchState, version: int | None, source: str, reports: Sequence[PhaseReport]
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
        "expected": {"count": expected.count, "at": moment(expected.at_us)} if expected else None,
        "known_essays": [
            {"essay_id": essay, "known_since": moment(since)} for essay, since in sorted(state.known_since_us.items())
        ],
        "phases": [_phase(of) for of in reports],
    }


def history_document(batch_id: str, entries: Iterable[KeptEntry], following: str | int | None) -> dict[str, Any]:
    """A page of a batch's history.

    :param following: how to ask for the page with what is older; None when nothing is.
    """
    return {"batch_id": batch_id, "entries": [_entry(kept) for kept in entries], "next": following}


def _phase(of: PhaseReport) -> dict[str, Any]:
    return {
        "phase": of.phase,
        "complete": of.verdict.complete,
        "completed": of.verdict.completed,
        "failed": of.verdict.failed,
        "outstanding": of.outstanding,
        "missing": of.missing,
        "newest_mark_at": moment(of.newest.at_us) if of.newest else None,
        "batch_mark": _mark(of.batch_mark),
        "held_back_by": [
            {
                "essay_id": obstacle.essay_id,
                "why": obstacle.why.value,
                "known_since": moment(obstacle.known_since_us),
                "mark": _mark(obstacle.mark),
            }
            for obstacle in of.held_back_by
        ],
    }


def _mark(mark: Mark | None) -> dict[str, str] | None:
    return {"outcome": OUTCOMES[mark.outcome], "at": moment(mark.at_us)} if mark else None


def _entry(kept: KeptEntry) -> dict[str, Any]:
    entry = kept.entry
    kind, particulars = (
        ("resolution", _resolution(entry)) if isinstance(entry, PipelineResolved) else ("facts", _recorded(entry))
    )
    return {
        "number": kept.number,
        "recorded_at": moment(entry.at_us),
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
        "state_version": entry.version,
        "source": entry.source,
    }


def _position(position: Position | None) -> dict[str, Any] | None:
    if position is None:
        return None
    return {"topic": position.topic, "partition": position.partition, "offset": position.offset}


def _fact(fact: Fact) -> dict[str, Any]:
    if isinstance(fact, EssayPhaseEnded):
        return {
            "fact": "essay_phase_ended",
            "phase": fact.phase,
            "essay_id": fact.essay_id,
            "outcome": OUTCOMES[fact.outcome],
            "at": moment(fact.at_us),
        }
    if isinstance(fact, BatchPhaseEnded):
        return {
            "fact": "batch_phase_ended",
            "phase": fact.phase,
            "outcome": OUTCOMES[fact.outcome],
            "at": moment(fact.at_us),
        }
    return {
        "fact": "essays_registered",
        "essay_ids": list(fact.essay_ids),
        "expected_count": fact.expected_count,
        "at": moment(fact.at_us),
    }
