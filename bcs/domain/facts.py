"""What can become known about a batch. Facts are never taken back; a newer one supersedes an older one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from enum import StrEnum
from hashlib import blake2b


class Outcome(StrEnum):
    """How a phase ended, for an essay or for a whole batch. The values are what the store keeps."""

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
    """A service said how a phase ended for the essays that it names. It says nothing of any other essay.

    :param status: as the service gave it.
    :param completed: ids of essays that completed the phase.
    :param failed: ids of essays that failed in it.
    :param speaks_for_all: it is ELS's success that names nobody; it speaks for every essay that was due.
    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    :param repeat_key: see `repeat_key_of`; empty where the event carries a time of its own.
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
    """Someone reported how a phase ended for every essay that had joined the batch by then.

    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    """

    phase: str
    outcome: Outcome
    at_us: int


@dataclass(frozen=True, slots=True)
class PhaseInvalidated:
    """What was known of a phase before a certain time no longer counts.

    :param essay_id: for this essay alone; None for all of them.
    :param at_us: what is older does not count; microseconds since 1970 UTC.
    """

    phase: str
    essay_id: str | None
    at_us: int


@dataclass(frozen=True, slots=True)
class EssaysRegistered:
    """Essays belong to the batch, and so many are expected in all.

    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    """

    essay_ids: tuple[str, ...]
    expected_count: int
    at_us: int


Fact = EssayPhaseEnded | PhaseOutcome | PhaseReported | PhaseInvalidated | EssaysRegistered


def parts_of(fact: Fact, essays: int) -> Iterator[Fact]:
    """A fact as several facts, which say together what the whole says. No part says it alone.

    :param essays: how many essays a part names at most.
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
    """The same text for every copy of an outcome that carries no time of its own, 16 hexadecimal digits.

    The producers' relay stamps each copy anew, so the times of two copies say nothing. The status counts only where
    nobody is named: elsewhere it changes nothing.

    :param completed: ids in any order.
    :param failed: ids in any order.
    """
    lists = [sorted(set(completed)), sorted(set(failed))]
    # As JSON, so that no id can be taken for two, whatever characters it has.
    parts = json.dumps([phase, correlation_id, "" if lists[0] or lists[1] else status, *lists])
    return blake2b(parts.encode(), digest_size=8).hexdigest()
