"""The state and the history of a batch, as documents for the service and the commands."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from pydantic_core import to_json

from bcs.domain.definitions_difference import Difference
from bcs.domain.definitions_version import DefinitionsVersion
from bcs.domain.erasure import ErasureRecorded
from bcs.domain.facts import (
    EssayPhaseEnded,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
    RecordedUnder,
)
from bcs.domain.history import ArchivedEntry, FactsRecorded, PipelineResolved, Position
from bcs.domain.pipelines import PipelineDefinitions
from bcs.domain.progress import BlockingEssay, PhaseExplanation
from bcs.domain.resolve_options import PLAIN
from bcs.domain.slices import SLICE, Sliced, in_slices
from bcs.domain.state import BatchState, Ending, Mark
from bcs.domain.times import format_timestamp
from bcs.http import answers, definition_answers, history_answers

# The approximate size of an essay in a list, without its id.
_ESSAY_BYTES = 150

T = TypeVar("T")

OUTCOMES: Mapping[Outcome, answers.EndedAs] = {Outcome.COMPLETED: "completed", Outcome.FAILED: "failed"}


def phases_to_show(state: BatchState, configured: Iterable[str]) -> list[str]:
    """The configured phases, then other phases that have marks."""
    listed = list(configured)
    return [*listed, *sorted(state.phases.difference(listed))]


@dataclass(frozen=True, slots=True)
class Extent:
    """The essays that a document contains, both in the list of all essays and in the lists of blocking essays.

    :param after: only essays whose ids come after this id.
    :param limit: how many essays a list has at most; None for no limit.
    :param list_bytes: the approximate size of a list; None for no limit. A list has at least one essay.
    """

    after: str = ""
    limit: int | None = None
    list_bytes: int | None = None

    def of(self, essays: Sequence[T], essay_id: Callable[[T], str]) -> list[T]:
        """The essays in a list.

        :param essays: in the order of their ids.
        """
        following = islice(essays, bisect_right(essays, self.after, key=essay_id), None)
        listed = list(islice(following, self.limit))
        if self.list_bytes is None:
            return listed
        left = self.list_bytes
        for count, essay in enumerate(listed):
            left -= len(to_json(essay_id(essay))) + _ESSAY_BYTES
            if left < 0:
                return listed[: count or 1]
        return listed


def extent_of(after: str | None, limit: int, *, page_bytes: int, phases: int) -> Extent:
    """The extent of a page with an approximate size and a number of explained phases."""
    return Extent(after or "", limit, page_bytes // (1 + phases))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPage:
    """The state of a batch, and the essays of it that a document contains.

    :param version: None if the source has no versions.
    :param source: `REDIS`, `POSTGRESQL` or `MEMORY`.
    :param essays: the essays of the state, sorted.
    :param extent: the essays that the document contains.
    :param next_after: makes the `next` member from the last essay in the document.
    """

    batch_id: str
    state: BatchState
    version: int | None
    source: str
    essays: Sequence[str]
    extent: Extent
    next_after: Callable[[str], str]


def state_document(page: BatchPage) -> answers.Batch:
    """The state of a batch without its phases; for these see `phase_document`."""
    listed = page.extent.of(page.essays, str)
    return {
        **_batch_without_lists(page, listed),
        "known_essays": [_known_essay(page.state, essay) for essay in listed],
    }


def encoding_state(page: BatchPage, phases: Sequence[bytes]) -> Sliced[bytes]:
    """The state of a batch with its phases, as JSON, encoded in slices.

    :param phases: the JSON of each phase, from `encoding_phase`.
    """
    listed = page.extent.of(page.essays, str)
    encoded = yield from encoding_items(listed, partial(_known_essay, page.state))
    document = _batch_without_lists(page, listed)
    return with_lists(document, known_essays=encoded, phases=b",".join(phases))


def _known_essay(state: BatchState, essay: str) -> answers.KnownEssay:
    return {"essay_id": essay, "first_seen": format_timestamp(state.first_seen_us[essay])}


def _batch_without_lists(page: BatchPage, listed: Sequence[str]) -> answers.Batch:
    expected, essays = page.state.expected, page.essays
    ended = not listed or listed[-1] == essays[-1]
    return {
        "batch_id": page.batch_id,
        "version": page.version,
        "source": page.source,
        "registered": expected is not None,
        "expected": {"count": expected.count, "at": format_timestamp(expected.at_us)} if expected else None,
        "essays_known": len(essays),
        "known_essays": [],
        "next": None if ended else page.next_after(listed[-1]),
        "phases": [],
    }


def history_document(batch_id: str, entries: Iterable[ArchivedEntry], following: str | int | None) -> dict[str, Any]:
    """A page of a batch's history.

    :param following: the `next` member, which names the page with older entries; None if there are none.
    """
    return {"batch_id": batch_id, "entries": [_entry(archived) for archived in entries], "next": following}


def encoding_history(batch_id: str, entries: Sequence[ArchivedEntry], following: str | int | None) -> Sliced[bytes]:
    """A page of a batch's history as JSON, encoded in slices, because an entry may name thousands of essays."""
    encoded = yield from encoding_items(entries, _entry, length=1)
    return with_lists(history_document(batch_id, (), following), entries=encoded)


def phase_document(of: PhaseExplanation, extent: Extent) -> answers.Phase:
    """The progress of a phase, and the essays that block the phase.

    The document contains the first blocking essays after `extent.after`, as many as a page has essays. So it contains
    each blocking essay on the page, and all pages together contain each blocking essay at least once.
    """
    return {
        **_phase_without_essays(of),
        "blocking_essays": list(map(_held_back, extent.of(of.held_back_by, _essay_id))),
    }


def encoding_phase(of: PhaseExplanation, extent: Extent) -> Sliced[bytes]:
    """The document of a phase as JSON, encoded in slices."""
    encoded = yield from encoding_items(extent.of(of.held_back_by, _essay_id), _held_back)
    return with_lists(_phase_without_essays(of), blocking_essays=encoded)


def encoding_items(
    items: Iterable[T], document: Callable[[T], Mapping[str, Any]], *, length: int = SLICE
) -> Sliced[bytes]:
    """A list of documents as JSON, without the brackets.

    :param length: the number of documents in a slice.
    """
    parts: list[bytes] = []
    for some in in_slices(items, length):
        parts.append(to_json([document(item) for item in some])[1:-1])
        yield
    return b",".join(parts)


def with_lists(document: Mapping[str, Any], **lists: bytes) -> bytes:
    """A document as JSON, in which encoded lists replace members."""
    values = ((name, b"[%s]" % lists[name] if name in lists else to_json(value)) for name, value in document.items())
    return b"{%s}" % b",".join(b"%s:%s" % (to_json(name), value) for name, value in values)


def _held_back(essay: BlockingEssay) -> answers.BlockingEssay:
    return {
        "essay_id": essay.essay_id,
        "reason": essay.why,
        "first_seen": format_timestamp(essay.first_seen_us),
        "mark": mark_document(essay.mark),
    }


def _phase_without_essays(of: PhaseExplanation) -> answers.Phase:
    progress = of.progress
    return {
        "phase": of.phase,
        "complete": progress.complete,
        "complete_when": of.complete_when,
        "completed": progress.completed,
        "failed": progress.failed,
        "failed_before": progress.failed_before,
        "left_out": progress.left_out,
        "outstanding": of.outstanding,
        "missing": of.missing,
        "newest_mark_at": format_timestamp(of.newest.at_us) if of.newest else None,
        "report": mark_document(of.report),
        "outcome": ending_document(of.outcome),
        "blocking_essays_total": len(of.held_back_by),
        "blocking_essays": [],
    }


def _essay_id(essay: BlockingEssay) -> str:
    return essay.essay_id


def mark_document(mark: Mark | None) -> answers.Mark | None:
    """A mark; None where there is none."""
    return {"outcome": OUTCOMES[mark.outcome], "at": format_timestamp(mark.at_us)} if mark else None


def ending_document(ending: Ending | None) -> answers.Ending | None:
    """An outcome without its lists; None where there is none."""
    return {"status": ending.status, "at": format_timestamp(ending.at_us)} if ending else None


def _entry(archived: ArchivedEntry) -> history_answers.Entry:
    entry = archived.entry
    if isinstance(entry, PipelineResolved):
        return _resolution(archived.number, entry)
    if isinstance(entry, ErasureRecorded):
        return _erasure(archived.number, entry)
    return _facts(archived.number, entry)


def _erasure(number: int, entry: ErasureRecorded) -> history_answers.ErasureEntry:
    return {
        "number": number,
        "recorded_at": format_timestamp(entry.at_us),
        "kind": "erasure",
        "correlation_id": entry.correlation_id,
        "erased_by": entry.erased_by,
        "reason": entry.reason,
        "refused_until": format_timestamp(entry.until_us),
    }


def _facts(number: int, entry: FactsRecorded) -> history_answers.FactsEntry:
    document: history_answers.FactsEntry = {
        "number": number,
        "recorded_at": format_timestamp(entry.at_us),
        "kind": "facts",
        "correlation_id": entry.correlation_id,
        "event_type": entry.event_type,
        "event_id": entry.event_id,
        "source": position_document(entry.position),
        "reported_by": entry.asked_by,
        "facts": [_fact(fact) for fact in entry.facts],
    }
    if entry.reason is not None:
        document["reason"] = entry.reason
    return document


def _resolution(number: int, entry: PipelineResolved) -> history_answers.ResolutionEntry:
    document: history_answers.ResolutionEntry = {
        "number": number,
        "recorded_at": format_timestamp(entry.at_us),
        "kind": "resolution",
        "correlation_id": entry.correlation_id,
        "requested_by": entry.asked_by,
        "pipeline": entry.pipeline,
        "final_pipeline": [decision.phase for decision in entry.decisions if decision.runs],
        "pruned_phases": [decision.phase for decision in entry.decisions if decision.pruned],
        "decisions": [
            {
                "phase": decision.phase,
                "runs": decision.runs,
                "reason": decision.reason,
                "reason_text": decision.reason_text,
            }
            for decision in entry.decisions
        ],
        "registered": entry.registered,
        "definitions": definitions_version(entry.definitions) if entry.definitions else None,
        "state_version": entry.version,
        "source": entry.source,
    }
    if entry.options is not PLAIN:
        document["options"] = entry.options.given()
    return document


def definitions_version(of: DefinitionsVersion) -> definition_answers.DefinitionsVersion:
    """The name of definitions."""
    return {"version": of.version, "hash": of.content_hash}


def pipelines_document(definitions: PipelineDefinitions) -> definition_answers.Pipelines:
    """All names that can be requested."""
    return {
        "definitions": definitions_version(definitions.identity),
        "pipelines": [pipeline_document(definitions, name) for name in definitions.names],
    }


def pipeline_document(definitions: PipelineDefinitions, name: str) -> definition_answers.DefinedPipeline:
    """A name that can be requested, with its phases in order."""
    pipeline = definitions.pipelines.get(name)
    return {
        "name": name,
        "kind": "phase" if pipeline is None else "pipeline",
        "pipelines": [] if pipeline is None else pipeline.pipelines,
        "phases": [
            {
                "name": phase.name,
                "requires": phase.requires,
                "needs_prompt": phase.needs_prompt,
                "rerun_with_dependencies": phase.rerun_with_dependencies,
                "complete_when": phase.complete_when,
                "rerun_when_changed": phase.rerun_when_changed,
                "revision": phase.revision,
                "definition": phase.definition,
            }
            for phase in definitions.plan(name)
        ],
    }


def difference_document(found: Difference) -> definition_answers.Difference:
    """What definitions change."""
    return {
        "phases_added": found.phases_added,
        "phases_removed": found.phases_removed,
        "options_changed": [
            {"phase": one.phase, "option": one.option, "before": one.before, "after": one.after}
            for one in found.options
        ],
        "runs_again": [{"phase": one.phase, "before": one.before, "after": one.after} for one in found.runs_again],
        "pipelines_changed": [
            {"pipeline": one.pipeline, "before": one.before, "after": one.after} for one in found.plans
        ],
        "changes": list(found.sentences()),
    }


def position_document(position: Position | None) -> history_answers.KafkaPosition | None:
    if position is None:
        return None
    return {"topic": position.topic, "partition": position.partition, "offset": position.offset}


def _fact(fact: Fact) -> history_answers.Fact:
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
    if isinstance(fact, RecordedUnder):
        return {"fact": "recorded_under", "phase": fact.phase, "definition": fact.definition, "at": at}
    return {
        "fact": "essays_registered",
        "essay_ids": list(fact.essay_ids),
        "expected_count": fact.expected_count,
        "at": at,
    }
