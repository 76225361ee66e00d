"""A page of a batch's history, for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from bcs.cli.output import plain
from bcs.domain.dead_lettered import DEAD_LETTERED, REPLAYED
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
from bcs.domain.history import ArchivedEntry, FactsRecorded, PipelineResolved
from bcs.domain.times import format_timestamp
from bcs.http.documents import OUTCOMES
from bcs.ops.wording import counted
from bcs.storage.postgres.history_reader import HistoryPage


def history_page(batch_id: str, page: HistoryPage) -> RenderableType:
    """The entries of a page, with their times and sources."""
    count = len(page.entries)
    shown = f": {count} {'entry' if count == 1 else 'entries'}, newest first" if count else ": no such entry"
    parts: list[RenderableType] = [Text.assemble("Batch ", plain(batch_id, "bold"), shown)]
    for archived in page.entries:
        parts += [Text(), *printed_lines(archived)]
    if page.continues_before is not None:
        parts += [Text(), Text(f"There are older entries: --before {page.continues_before}")]
    return Group(*parts)


def printed_lines(archived: ArchivedEntry) -> list[RenderableType]:
    """One entry, with its time and source."""
    entry = archived.entry
    if isinstance(entry, PipelineResolved):
        origin = f"asked by {entry.asked_by}; read from {entry.source}, version {entry.version}"
        lines = [_answer(entry), origin]
        if entry.definitions:
            lines.append(f"pipeline definitions {entry.definitions}")
    elif isinstance(entry, ErasureRecorded):
        lines = [
            f"erased by {entry.erased_by}: {entry.reason}",
            f"nothing about the batch is accepted before {format_timestamp(entry.until_us)}",
        ]
    elif entry.event_type == DEAD_LETTERED:
        at = entry.position
        message = f"the message {at.topic}/{at.partition}/{at.offset}" if at else f"the request of {entry.asked_by}"
        lines = [f"{message} became a dead letter: {entry.reason}"]
    elif entry.event_type == REPLAYED and (at := entry.position):
        lines = [f"the dead letter {at.topic}/{at.partition}/{at.offset} was replayed by {entry.asked_by}"]
    else:
        lines = [*_sentences(entry.facts), *_origin(entry)]
    if entry.correlation_id:
        lines.append(f"correlation id {entry.correlation_id}")
    heading = Text.assemble((format_timestamp(entry.at_us), "bold"), f"  number {archived.number}")
    return [heading, *(Padding(plain(line), (0, 0, 0, 2), expand=False) for line in lines)]


def _answer(entry: PipelineResolved) -> str:
    runs = ", ".join(decision.phase for decision in entry.decisions if decision.runs)
    pruned = ", ".join(
        f"{decision.phase} ({decision.reason.replace('_', ' ')})" for decision in entry.decisions if decision.pruned
    )
    known = "; the batch was not registered" if entry.registered is False else ""
    given = (
        f"; {name} {value if isinstance(value, str) else ', '.join(value)}"
        for name, value in entry.options.given().items()
    )
    answer = f"runs {runs or 'nothing'}{f'; pruned {pruned}' if pruned else ''}{known}"
    return f"asked for {entry.pipeline}: {answer}{''.join(given)}"


def _sentences(facts: Sequence[Fact]) -> list[str]:
    """One sentence for each kind of fact. A single essay is named; several essays are counted."""
    essays = Counter((fact.phase, fact.outcome) for fact in facts if isinstance(fact, EssayPhaseEnded))
    invalidated = Counter(fact.phase for fact in facts if isinstance(fact, PhaseInvalidated))
    sentences: dict[str, None] = {}
    for fact in facts:
        if isinstance(fact, EssayPhaseEnded):
            count = essays[fact.phase, fact.outcome]
            essays_text = f"essay {fact.essay_id}" if count == 1 else f"{count} essays"
            sentences[f"{fact.phase} {OUTCOMES[fact.outcome]} for {essays_text}"] = None
        elif isinstance(fact, PhaseOutcome):
            sentences[_outcome(fact)] = None
        elif isinstance(fact, PhaseReported):
            sentences[f"{fact.phase} reported {OUTCOMES[fact.outcome]} for the whole batch"] = None
        elif isinstance(fact, PhaseInvalidated):
            count = invalidated[fact.phase]
            scope = "all essays" if fact.essay_id is None else f"essay {fact.essay_id}"
            sentences[f"{fact.phase} invalidated for {scope if count == 1 else f'{count} essays'}"] = None
        elif isinstance(fact, RecordedUnder):
            sentences[f"{fact.phase} under its definition {fact.definition}"] = None
        else:
            named = counted(len(fact.essay_ids), "essay")
            sentences[f"{named} registered, {fact.expected_count} expected"] = None
    return list(sentences)


def _outcome(fact: PhaseOutcome) -> str:
    """One phase outcome as text. A single essay in a list is named; several essays are counted."""
    lists = [
        f"{OUTCOMES[outcome]} for {f'essay {essays[0]}' if len(essays) == 1 else f'{len(essays)} essays'}"
        for outcome, essays in ((Outcome.COMPLETED, fact.completed), (Outcome.FAILED, fact.failed))
        if essays
    ]
    return (
        f"{fact.phase} {', '.join(lists)}" if lists else f"{fact.phase} ended ({fact.status}), without a list of essays"
    )


def _origin(entry: FactsRecorded) -> list[str]:
    position = entry.position
    if position is None:
        lines = [f"{entry.event_type} over HTTP, by {entry.asked_by or 'an unknown caller'}"]
        return lines if entry.reason is None else [*lines, f"reason: {entry.reason}"]
    event = f"{entry.event_type}, event id {entry.event_id}" if entry.event_id else entry.event_type
    return [event, f"from {position.topic}/{position.partition}/{position.offset}"]
