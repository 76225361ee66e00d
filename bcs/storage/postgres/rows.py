"""Encodes entries and facts as rows of the archive's tables, and decodes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from anyio.lowlevel import checkpoint

from bcs.domain.dead_lettered import DEAD_LETTERED, REPLAYED
from bcs.domain.erasure import ErasureRecorded, encode_tombstone
from bcs.domain.facts import Outcome
from bcs.domain.history import ArchivedEntry, FactsRecorded, HistoryEntry, PipelineResolved, Position
from bcs.domain.slices import Sliced
from bcs.domain.state import TIMED, BatchState, Ending, Expected, Mark
from bcs.domain.times import EPOCH, datetime_of
from bcs.storage.history_codec import decode_detail, encode_detail

FACTS, RESOLUTION, ERASURE = "facts", "resolution", "erasure"
DEAD_LETTER, REPLAY = "dead_letter", "replay"
_WITHOUT_FACTS = {DEAD_LETTERED: DEAD_LETTER, REPLAYED: REPLAY}
"""Such an entry has the form of one with facts, and none."""
ERASED = "erased"
"""The kind of the row of the state statement that has the tombstone of an erased batch."""

_ESSAYS_WITHOUT_A_PAUSE = 5000

LISTED_AT_US = 0
"""The time of an essay on an outcome's list, where the time of the outcome counts."""


def to_text(text: str) -> str:
    r"""A text in a form that PostgreSQL can store: without NUL, which becomes `\0`; a backslash becomes two."""
    if "\0" in text or "\\" in text:
        return text.replace("\\", "\\\\").replace("\0", "\\0")
    return text


def from_text(text: str) -> str:
    """The text that `to_text` encoded."""
    if "\\" not in text:
        return text
    return "\\".join(part.replace("\\0", "\0") for part in text.split("\\\\"))


def merge_arguments(deltas: Mapping[str, BatchState], entries: Sequence[HistoryEntry]) -> tuple[list[Any], ...]:
    """The arguments of the merge statement: a list for each column of each table.

    :param deltas: batch id to delta; every entry's batch must be among them.
    """
    batch_ids = sorted(deltas)
    number_of = {batch_id: number for number, batch_id in enumerate(batch_ids, start=1)}
    expected = [deltas[batch_id].expected for batch_id in batch_ids]
    essays: list[tuple[int, str, int]] = []
    marks: list[tuple[int, str, str, str, str, int]] = []
    outcomes: list[tuple[int, str, str, str, bool, int]] = []
    reports: list[tuple[int, str, str, int]] = []
    invalidations: list[tuple[int, str, str | None, int]] = []
    definitions: list[tuple[int, str, str, int]] = []
    for batch_id, number in number_of.items():
        delta = deltas[batch_id]
        essays += [(number, to_text(essay), since_us) for essay, since_us in delta.first_seen_us.items()]
        marks += [
            (number, phase, TIMED, to_text(essay), mark.outcome.value, mark.at_us)
            for phase, of_phase in delta.essay_marks.items()
            for essay, mark in of_phase.items()
        ]
        marks += [
            (number, phase, key, to_text(essay), outcome.value, LISTED_AT_US)
            for phase, by_key in delta.outcome_marks.items()
            for key, listed in by_key.items()
            for essay, outcome in listed.items()
        ]
        outcomes += [
            (number, phase, key, to_text(ending.status), ending.speaks_for_all, ending.at_us)
            for phase, endings in delta.outcomes.items()
            for key, ending in endings.items()
        ]
        reports += [(number, phase, report.outcome.value, report.at_us) for phase, report in delta.reports.items()]
        invalidations += [
            (number, phase, None if essay is None else to_text(essay), at_us)
            for phase, times in delta.invalidations.items()
            for essay, at_us in times.items()
        ]
        definitions += [
            (number, phase, definition, at_us)
            for phase, recorded in delta.definitions.items()
            for definition, at_us in recorded.items()
        ]
    history = [_history_row(number_of[entry.batch_id], entry) for entry in entries]
    return (
        [to_text(batch_id) for batch_id in batch_ids],
        [Decimal(one.count) if one else None for one in expected],
        [one.at_us if one else None for one in expected],
        *_columns(essays, 3),
        *_columns(marks, 6),
        *_columns(outcomes, 6),
        *_columns(reports, 4),
        *_columns(invalidations, 4),
        *_columns(definitions, 4),
        *_columns(history, 10),
        [not deltas[batch_id].empty for batch_id in batch_ids],
    )


async def state_of(rows: Iterable[Sequence[Any]]) -> BatchState:
    """A batch's state from the rows of the state statement. For many rows, other tasks run in between.

    :raises ValueError: BCS did not write these rows.
    """
    state = BatchState()
    # All essays of an outcome have equal marks, and making marks takes most of the time, so they are shared.
    shared_marks: dict[tuple[str, int], Mark] = {}
    essays_read = 0
    for kind, phase, key, essays, text, flag, count, times in rows:
        if kind == "essay":
            state.first_seen_us.update(zip(map(from_text, essays), times, strict=True))
        elif kind == "mark" and key == TIMED:
            outcome, marks = Outcome(text), state.essay_marks.setdefault(phase, {})
            for essay, at_us in zip(essays, times, strict=True):
                mark = shared_marks.get((text, at_us))
                if mark is None:
                    mark = shared_marks[text, at_us] = Mark(outcome, at_us)
                marks[from_text(essay)] = mark
        elif kind == "mark":
            listed = state.outcome_marks.setdefault(phase, {}).setdefault(key, {})
            listed.update(dict.fromkeys(map(from_text, essays), Outcome(text)))
        elif kind == "outcome":
            state.outcomes.setdefault(phase, {})[key] = Ending(from_text(text), flag, times[0])
        elif kind == "report":
            state.reports[phase] = Mark(Outcome(text), times[0])
        elif kind == "invalidation":
            names = (None if essay is None else from_text(essay) for essay in essays)
            state.invalidations.setdefault(phase, {}).update(zip(names, times, strict=True))
        elif kind == "definition":
            state.definitions.setdefault(phase, {})[key] = times[0]
        else:
            state.expected = Expected(int(count), times[0])
        essays_read += len(essays or ())
        if essays_read > _ESSAYS_WITHOUT_A_PAUSE:
            essays_read = 0
            await checkpoint()
    for phase, by_key in state.outcome_marks.items():
        if not by_key.keys() <= state.outcomes.get(phase, {}).keys():
            raise ValueError("an outcome's list without the outcome")
    return state


def archived_entry(batch_id: str, row: Mapping[str, Any]) -> ArchivedEntry:
    """An entry of the history from its row."""
    correlation_id, event_id = (
        None if row[column] is None else from_text(row[column]) for column in ("correlation_id", "event_id")
    )
    at_us = (row["recorded_at"] - EPOCH) // timedelta(microseconds=1)
    if row["kind"] == ERASURE:
        return ArchivedEntry(row["number"], _erasure(row["entry_id"], batch_id, at_us, correlation_id, row["detail"]))
    position = None
    if row["source_topic"] is not None:
        position = Position(row["source_topic"], row["source_partition"], row["source_offset"])
    entry = decode_detail(
        row["kind"] == RESOLUTION,
        row["detail"],
        entry_id=row["entry_id"],
        batch_id=batch_id,
        at_us=at_us,
        correlation_id=correlation_id,
        event_id=event_id,
        position=position,
    )
    return ArchivedEntry(row["number"], entry)


def archived_entries(batch_id: str, rows: Iterable[Mapping[str, Any]]) -> Sliced[list[ArchivedEntry]]:
    """Entries from their rows, in slices, because an entry may be about thousands of essays."""
    entries: list[ArchivedEntry] = []
    for row in rows:
        entries.append(archived_entry(batch_id, row))
        yield
    return entries


def erasure_arguments(entry: ErasureRecorded) -> tuple[Any, ...]:
    """The arguments of the statement that erases a batch."""
    return (
        to_text(entry.batch_id),
        datetime_of(entry.until_us),
        to_text(encode_tombstone(entry.tombstone)),
        entry.entry_id,
        datetime_of(entry.at_us),
        to_text(entry.correlation_id),
        json.dumps({"erased_by": entry.erased_by, "reason": entry.reason, "until_us": entry.until_us}),
    )


def _erasure(entry_id: UUID, batch_id: str, at_us: int, correlation_id: str | None, detail: str) -> ErasureRecorded:
    try:
        document = json.loads(detail)
        return ErasureRecorded(
            entry_id,
            batch_id,
            at_us,
            correlation_id=correlation_id or "",
            erased_by=document["erased_by"],
            reason=document["reason"],
            until_us=document["until_us"],
        )
    except (LookupError, TypeError) as error:
        raise ValueError(f"not an erasure's details: {error!r}") from None


def _history_row(number: int, entry: HistoryEntry) -> tuple[Any, ...]:
    at = datetime_of(entry.at_us)
    detail = encode_detail(entry)
    if isinstance(entry, PipelineResolved):
        return number, entry.entry_id, at, RESOLUTION, to_text(entry.correlation_id), None, None, None, None, detail
    kind = _WITHOUT_FACTS.get(entry.event_type, FACTS)
    return (number, entry.entry_id, at, kind, *_origin(entry), detail)


def _origin(entry: FactsRecorded) -> tuple[Any, ...]:
    position = entry.position
    return (
        None if entry.correlation_id is None else to_text(entry.correlation_id),
        None if entry.event_id is None else to_text(entry.event_id),
        *((position.topic, position.partition, position.offset) if position else (None, None, None)),
    )


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
