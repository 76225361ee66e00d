"""The facts about a batch. A fact is never taken back; a newer fact supersedes an older one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from enum import StrEnum
from hashlib import blake2b


class Outcome(StrEnum):
    """How a phase ended, for an essay or for a whole batch. The values are written to the stores."""

    COMPLETED = "c"
    FAILED = "f"


@dataclass(frozen=True, slots=True)
class EssayPhaseEnded:
    """A phase ended for one essay.

    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    """

    phase: str
    essay_id: str
    outcome: Outcome
    at_us: int


@dataclass(frozen=True, slots=True)
class PhaseOutcome:
    """A service's event about how a phase ended for the essays that the event lists, and for no other essay.

    :param status: the status in the event.
    :param completed: ids of essays that completed the phase.
    :param failed: ids of essays that failed in it.
    :param speaks_for_all: True for a success of ELS that lists no essay: it covers every essay that was due.
    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    :param repeat_key: see `repeat_key_of`; empty where the event carries its own time.
    """

    phase: str
    status: str
    _: KW_ONLY
    completed: tuple[str, ...]
    failed: tuple[str, ...]
    speaks_for_all: bool
    at_us: int
    repeat_key: str = ""


@dataclass(frozen=True, slots=True)
class PhaseReported:
    """A phase report: how a phase ended for every essay that had joined the batch by then.

    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    """

    phase: str
    outcome: Outcome
    at_us: int


@dataclass(frozen=True, slots=True)
class PhaseInvalidated:
    """Older facts about a phase no longer count.

    :param essay_id: the only essay whose facts are meant; None for all essays.
    :param at_us: facts older than this time do not count; microseconds since 1970 UTC.
    """

    phase: str
    essay_id: str | None
    at_us: int


@dataclass(frozen=True, slots=True)
class RecordedUnder:
    """Facts about how a phase ended, up to this time, were recorded while this definition of the phase was in use.

    :param definition: the hash of the definition, see `Phase.definition`.
    :param at_us: the newest time of these facts, in microseconds since 1970 UTC.
    """

    phase: str
    definition: str
    at_us: int


@dataclass(frozen=True, slots=True)
class EssaysRegistered:
    """The essays of a batch were registered, with the number of essays that are expected in all.

    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    """

    essay_ids: tuple[str, ...]
    expected_count: int
    at_us: int


Fact = EssayPhaseEnded | PhaseOutcome | PhaseReported | PhaseInvalidated | RecordedUnder | EssaysRegistered


def recorded_under(facts: Iterable[Fact], definitions: Mapping[str, str]) -> tuple[RecordedUnder, ...]:
    """Under which definitions facts are recorded.

    :param definitions: phase to the hash of the definition in use, for the phases whose definitions are kept.
    """
    times: dict[str, int] = {}
    for fact in facts:
        if isinstance(fact, EssayPhaseEnded | PhaseOutcome | PhaseReported) and fact.phase in definitions:
            times[fact.phase] = max(fact.at_us, times.get(fact.phase, fact.at_us))
    return tuple(RecordedUnder(phase, definitions[phase], at_us) for phase, at_us in times.items())


def parts_of(fact: Fact, essays: int) -> Iterator[Fact]:
    """Split a fact into smaller facts that have the same effect together, and never all of the effect alone.

    :param essays: how many essays a part lists at most.
    """
    if isinstance(fact, EssaysRegistered) and len(fact.essay_ids) > essays:
        for names in _slices(fact.essay_ids, essays):
            yield replace(fact, essay_ids=names)
    elif isinstance(fact, PhaseOutcome) and len(fact.completed) + len(fact.failed) > essays:
        for names in _slices(fact.completed, essays):
            yield replace(fact, completed=names, failed=())
        for names in _slices(fact.failed, essays):
            yield replace(fact, completed=(), failed=names)
    else:
        yield fact


def _slices(names: tuple[str, ...], length: int) -> Iterator[tuple[str, ...]]:
    return (names[start : start + length] for start in range(0, len(names), length))


def repeat_key_of(phase: str, correlation_id: str, status: str, completed: Iterable[str], failed: Iterable[str]) -> str:
    """A key that is the same for every copy of an outcome that carries no time of its own: 16 hexadecimal digits.

    The producers' relay gives each copy a new time, so the times of copies can't be compared. The status is part of
    the key only where the lists are empty, because elsewhere the status changes nothing.

    :param completed: ids in any order.
    :param failed: ids in any order.
    """
    lists = [sorted(set(completed)), sorted(set(failed))]
    # As JSON, so that one id can't look like two ids, whatever characters it has.
    parts = json.dumps([phase, correlation_id, "" if lists[0] or lists[1] else status, *lists])
    return blake2b(parts.encode(), digest_size=8).hexdigest()
