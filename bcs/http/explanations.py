"""Encodes an explained resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic_core import to_json

from bcs.domain.explained import DecidingFact, ExplainedPhase, PhaseCause
from bcs.domain.history import ArchivedEntry, FactsRecorded
from bcs.domain.progress import Evaluation, OlderDefinition
from bcs.domain.resolution import Resolution
from bcs.domain.resolve_options import ResolveOptions
from bcs.domain.slices import Sliced
from bcs.domain.state import BatchState, Ending
from bcs.domain.times import format_timestamp
from bcs.http import explanation_answers as answers
from bcs.http.documents import OUTCOMES, Extent, encoding_items, mark_document, position_document, with_lists
from bcs.http.requests import pipeline_answer
from bcs.kafka.lag_age import IntakeLag
from bcs.usecases.explain_pipeline import Explanation

_NAMED = 20
"""How many essays of a cause are named."""


def answer_with_options(
    batch_id: str,
    resolution: Resolution,
    source: str,
    *,
    options: ResolveOptions,
    dry_run: bool,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """The answer to a request with options, without the explanation."""
    document: dict[str, Any] = {**pipeline_answer(batch_id, resolution), "source": source}
    if dry_run:
        document["dry_run"] = True
    if given := options.given():
        document["options"] = given
    if resolution.left_out:
        document["left_out_phases"] = resolution.left_out
    if warnings:
        document["warnings"] = warnings
    return document


def encoding_explained(
    answer: Mapping[str, Any],
    explanation: Explanation,
    extent: Extent | None = None,
    next_after: Callable[[str], str] | None = None,
) -> Sliced[bytes]:
    """An answer with its explanation as JSON, encoded in slices.

    :param answer: from `answer_with_options`.
    :param extent: the essays that each phase lists; None for a short explanation.
    :param next_after: makes the path of the next page from the last essay on this page.
    """
    essays = extent.of(explanation.evaluation.essays, str) if extent else None
    phases: list[bytes] = []
    for of in explanation.phases:
        document = _phase(of, explanation.entries)
        if essays is None:
            phases.append(to_json(document))
        else:
            listed = yield from encoding_items(
                essays, _essays_of(of.phase.name, explanation.evaluation, explanation.state)
            )
            phases.append(with_lists({**document, "essays": []}, essays=listed))
        yield
    outer: dict[str, Any] = {
        "as_of": as_of(explanation.lag),
        "registration_required": explanation.require_registration,
        "state_version": explanation.version,
        "archive": explanation.archive.value,
        "phases": [],
    }
    if essays is not None:
        known = explanation.evaluation.essays
        ended = not essays or essays[-1] == known[-1]
        outer["next"] = None if ended or next_after is None else next_after(essays[-1])
    encoded = with_lists(outer, phases=b",".join(phases))
    return b'%b,"explanation":%b}' % (to_json(answer)[:-1], encoded)


def as_of(lag: IntakeLag) -> answers.AsOf:
    """How far the intake was behind."""
    measured_at = None if lag.measured_ms is None else format_timestamp(lag.measured_ms * 1000)
    return {"events_behind": lag.events, "seconds_behind": lag.seconds, "measured_at": measured_at}


def _essays_of(phase: str, evaluation: Evaluation, state: BatchState) -> Callable[[str], answers.ExplainedEssay]:
    standing, marks, first_seen_us = evaluation.standings(phase), evaluation.marks(phase), state.first_seen_us

    def essay(essay_id: str) -> answers.ExplainedEssay:
        return {
            "essay_id": essay_id,
            "standing": standing(essay_id),
            "first_seen": format_timestamp(first_seen_us[essay_id]),
            "mark": mark_document(marks.get(essay_id)),
        }

    return essay


def _phase(of: ExplainedPhase, entries: Mapping[DecidingFact, ArchivedEntry]) -> answers.ExplainedPhase:
    decision, facts, progress, since_us = of.decision, of.facts, of.facts.progress, of.since_us
    return {
        "phase": of.phase.name,
        "decision": "run" if decision.runs else "prune" if decision.selected else "leave_out",
        "reason": decision.reason,
        "sentence": of.sentence,
        "causes": [_cause(cause) for cause in of.causes],
        "requires": of.phase.requires,
        "rerun_with_dependencies": of.phase.rerun_with_dependencies,
        "runs_again_after": decision.run_again_after,
        "complete_when": of.phase.complete_when,
        "rerun_when_changed": of.phase.rerun_when_changed,
        "definition": of.phase.definition,
        "older_definition": _older(progress.older),
        "complete": progress.complete,
        "complete_since": None if since_us is None else format_timestamp(since_us),
        "assumed": None if of.assumed is None else OUTCOMES[of.assumed],
        "forced": decision.forced,
        "completed": progress.completed,
        "failed": progress.failed,
        "failed_before": progress.failed_before,
        "left_out": progress.left_out,
        "missing": facts.missing,
        "covered_by_report": progress.covered,
        "report": mark_document(facts.report),
        "outcome": _outcome(facts.outcome),
        "decided_by": _decided_by(of.decided_by, entries),
    }


def _cause(cause: PhaseCause) -> answers.CauseOfDecision:
    document: answers.CauseOfDecision = {"cause": cause.cause}
    if cause.count is not None:
        document["count"] = cause.count
    if cause.essays:
        document["essays"] = list(islice(cause.essays, _NAMED))
    if cause.at_us is not None:
        document["at"] = format_timestamp(cause.at_us)
    if cause.status is not None:
        document["status"] = cause.status
    if cause.phases:
        document["phases"] = cause.phases
    if cause.definitions is not None:
        document["definition_before"], document["definition"] = cause.definitions
    return document


def _outcome(ending: Ending | None) -> answers.EndedPhase | None:
    if ending is None:
        return None
    at = format_timestamp(ending.at_us)
    return {"status": ending.status, "at": at, "speaks_for_all": ending.speaks_for_all}


def _older(older: OlderDefinition | None) -> answers.OlderDefinition | None:
    if older is None:
        return None
    at = format_timestamp(older.at_us)
    return {"definition": older.definition, "at": at, "completed_since": older.completed_since}


def _decided_by(
    fact: DecidingFact | None, entries: Mapping[DecidingFact, ArchivedEntry]
) -> answers.FactThatDecided | None:
    if fact is None:
        return None
    return {
        "fact": fact.kind,
        "phase": fact.phase,
        "essay_id": fact.essay_id,
        "at": format_timestamp(fact.at_us),
        "archived": _archived(entries.get(fact)),
    }


def _archived(archived: ArchivedEntry | None) -> answers.ArchivedFact | None:
    if archived is None or not isinstance(archived.entry, FactsRecorded):
        return None
    entry = archived.entry
    return {
        "number": archived.number,
        "recorded_at": format_timestamp(entry.at_us),
        "event_type": entry.event_type,
        "event_id": entry.event_id,
        "correlation_id": entry.correlation_id,
        "source": position_document(entry.position),
        "reported_by": entry.asked_by,
    }
