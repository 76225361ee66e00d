"""The state of a batch: registers that merge, so that neither the order nor the repetition of facts matters.

Every register has a join that is commutative, associative and idempotent, which makes the whole state a join
semilattice (Shapiro et al., "Conflict-free Replicated Data Types", 2011): replicas and retries that see the same facts
end with the same state, whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
    RecordedUnder,
)
from bcs.domain.slices import Sliced, at_once

K = TypeVar("K")
V = TypeVar("V")

TIMED = ""
"""The repeat key of the register for outcomes that carry their own time."""

ALL_ESSAYS = None
"""The key of an invalidation for all essays."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How a phase ended, and when.

    :param at_us: microseconds since 1970 UTC.
    """

    outcome: Outcome
    at_us: int

    def supersedes(self, other: Mark) -> bool:
        """True if this mark replaces the other: the newer does; at the same instant, failed does."""
        if self.at_us != other.at_us:
            return self.at_us > other.at_us
        return self.outcome is Outcome.FAILED and other.outcome is not Outcome.FAILED


@dataclass(frozen=True, slots=True)
class Expected:
    """How many essays the batch was registered with.

    :param at_us: the time of the registration, in microseconds since 1970 UTC.
    """

    count: int
    at_us: int

    def supersedes(self, other: Expected) -> bool:
        """True if this count replaces the other: the newer does; at the same instant, the larger does."""
        return (self.at_us, self.count) > (other.at_us, other.count)


@dataclass(frozen=True, slots=True)
class Ending:
    """An outcome without its lists: that a phase ended, how, and when.

    :param status: the status in the event.
    :param speaks_for_all: see `PhaseOutcome`.
    :param at_us: microseconds since 1970 UTC.
    """

    status: str
    speaks_for_all: bool
    at_us: int

    def supersedes(self, other: Ending, key: str) -> bool:
        """True if this ending replaces the other in the register with this repeat key.

        Of copies of one outcome the earliest wins. Of outcomes with their own times the newest wins. At the same
        instant, an ending without `speaks_for_all` replaces an ending with it.
        """
        if self.at_us != other.at_us:
            return self.at_us > other.at_us if key == TIMED else self.at_us < other.at_us
        return (not self.speaks_for_all, self.status) > (not other.speaks_for_all, other.status)


@dataclass(slots=True, kw_only=True)
class BatchState:
    """Everything that is known about a batch. A delta, a small state to be merged, has the same type.

    :param essay_marks: phase to essay to mark, from facts that carry their own time.
    :param outcome_marks: phase to an outcome's repeat key to essay to its outcome; the time is that of the ending.
    :param outcomes: phase to repeat key to ending; under `TIMED` the newest ending that carries its own time.
    :param reports: phase to the newest phase report.
    :param invalidations: phase to essay, or `ALL_ESSAYS`, to the time before which nothing counts.
    :param definitions: phase to the hash of a definition to the newest time of a fact that was recorded under it; see
        `RecordedUnder`.
    :param first_seen_us: every known essay of the batch to the earliest time of a fact that names it.
    :param expected: how many essays the batch was registered with; None where it was not registered.
    """

    essay_marks: dict[str, dict[str, Mark]] = field(default_factory=dict)
    outcome_marks: dict[str, dict[str, dict[str, Outcome]]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Ending]] = field(default_factory=dict)
    reports: dict[str, Mark] = field(default_factory=dict)
    invalidations: dict[str, dict[str | None, int]] = field(default_factory=dict)
    definitions: dict[str, dict[str, int]] = field(default_factory=dict)
    first_seen_us: dict[str, int] = field(default_factory=dict)
    expected: Expected | None = None

    @property
    def empty(self) -> bool:
        """True if no register has a value."""
        return not (
            self.essay_marks
            or self.outcome_marks
            or self.outcomes
            or self.reports
            or self.invalidations
            or self.definitions
            or self.first_seen_us
            or self.expected
        )

    @property
    def phases(self) -> set[str]:
        """The phases that any register has a value for; a definition alone says nothing about a phase."""
        return (
            self.essay_marks.keys()
            | self.outcome_marks.keys()
            | self.outcomes.keys()
            | self.reports.keys()
            | self.invalidations.keys()
        )

    @property
    def size(self) -> int:
        """How many registers hold one essay's value."""
        count = len(self.first_seen_us)
        count += sum(len(marks) for marks in self.essay_marks.values())
        count += sum(len(times) for times in self.invalidations.values())
        return count + sum(len(listed) for by_key in self.outcome_marks.values() for listed in by_key.values())

    def merge(self, delta: BatchState) -> BatchState:
        """Merge another state into this one.

        :returns: what changed: the registers of the delta that won. Merging the same delta again changes nothing.
        """
        return at_once(self.merging(delta))

    def merging(self, delta: BatchState) -> Sliced[BatchState]:
        """`merge` in slices; a slice is one mapping of essays."""
        changed = BatchState()
        for phase, marks in delta.essay_marks.items():
            mine = self.essay_marks.setdefault(phase, {})
            won = {essay: mark for essay, mark in marks.items() if essay not in mine or mark.supersedes(mine[essay])}
            if won:
                mine.update(won)
                changed.essay_marks[phase] = won
            yield
        for phase, by_key in delta.outcome_marks.items():
            for key, listed in by_key.items():
                held = self.outcome_marks.setdefault(phase, {}).setdefault(key, {})
                new = {essay: outcome for essay, outcome in listed.items() if _is_worse(outcome, held.get(essay))}
                if new:
                    held.update(new)
                    changed.outcome_marks.setdefault(phase, {})[key] = new
                yield
        for phase, endings in delta.outcomes.items():
            known = self.outcomes.setdefault(phase, {})
            for key, ending in endings.items():
                if key not in known or ending.supersedes(known[key], key):
                    known[key] = changed.outcomes.setdefault(phase, {})[key] = ending
        for phase, mark in delta.reports.items():
            if phase not in self.reports or mark.supersedes(self.reports[phase]):
                self.reports[phase] = changed.reports[phase] = mark
        for phase, times in delta.invalidations.items():
            invalidated = self.invalidations.setdefault(phase, {})
            for essay_or_all, at_us in times.items():
                if at_us > invalidated.get(essay_or_all, -1):
                    invalidated[essay_or_all] = changed.invalidations.setdefault(phase, {})[essay_or_all] = at_us
        for phase, under in delta.definitions.items():
            recorded = self.definitions.setdefault(phase, {})
            for definition, at_us in under.items():
                if at_us > recorded.get(definition, -1):
                    recorded[definition] = changed.definitions.setdefault(phase, {})[definition] = at_us
        for essay, since_us in delta.first_seen_us.items():
            if essay not in self.first_seen_us or since_us < self.first_seen_us[essay]:
                self.first_seen_us[essay] = changed.first_seen_us[essay] = since_us
        if delta.expected and (self.expected is None or delta.expected.supersedes(self.expected)):
            self.expected = changed.expected = delta.expected
        return changed

    def copy(self) -> BatchState:
        """An independent state with the same registers."""
        return at_once(self.copying())

    def copying(self) -> Sliced[BatchState]:
        """`copy` in slices."""
        copied = BatchState()
        yield from copied.merging(self)
        return copied

    def parts(self, registers: int) -> Iterator[BatchState]:
        """Split this state into smaller states that merge to this state.

        :param registers: how many registers of essays a part has at most. The first part has all other registers.
        """
        yield BatchState(
            outcomes=self.outcomes, reports=self.reports, definitions=self.definitions, expected=self.expected
        )
        for seen in _slices(self.first_seen_us, registers):
            yield BatchState(first_seen_us=seen)
        for phase, marks in self.essay_marks.items():
            for some in _slices(marks, registers):
                yield BatchState(essay_marks={phase: some})
        for phase, by_key in self.outcome_marks.items():
            for key, listed in by_key.items():
                for names in _slices(listed, registers):
                    yield BatchState(outcome_marks={phase: {key: names}})
        for phase, times in self.invalidations.items():
            for before in _slices(times, registers):
                yield BatchState(invalidations={phase: before})


def _slices(registers: dict[K, V], length: int) -> Iterator[dict[K, V]]:
    waiting = iter(registers.items())
    while some := dict(islice(waiting, length)):
        yield some


def delta_of(facts: Iterable[Fact]) -> BatchState:
    """The delta that a set of facts, in any order, adds to a state."""
    delta = BatchState()
    for fact in facts:
        if isinstance(fact, EssayPhaseEnded):
            _mark(delta, fact.phase, fact.essay_id, Mark(fact.outcome, fact.at_us))
        elif isinstance(fact, PhaseOutcome):
            _add_outcome(delta, fact)
        elif isinstance(fact, PhaseReported):
            delta.merge(BatchState(reports={fact.phase: Mark(fact.outcome, fact.at_us)}))
        elif isinstance(fact, PhaseInvalidated):
            # Without `merge`: one request may name thousands of essays.
            times = delta.invalidations.setdefault(fact.phase, {})
            times[fact.essay_id] = max(fact.at_us, times.get(fact.essay_id, fact.at_us))
        elif isinstance(fact, RecordedUnder):
            delta.merge(BatchState(definitions={fact.phase: {fact.definition: fact.at_us}}))
        else:
            delta.merge(_registered(fact))
    return delta


def _is_worse(outcome: Outcome, held: Outcome | None) -> bool:
    return held is None or (outcome is Outcome.FAILED and held is not Outcome.FAILED)


def _mark(delta: BatchState, phase: str, essay_id: str, mark: Mark) -> None:
    marks = delta.essay_marks.setdefault(phase, {})
    known = marks.get(essay_id)
    if known is None or mark.supersedes(known):
        marks[essay_id] = mark
    _see(delta, essay_id, mark.at_us)


def _see(delta: BatchState, essay_id: str, at_us: int) -> None:
    # An essay that an event names belongs to the batch from that time on, registered or not.
    delta.first_seen_us[essay_id] = min(at_us, delta.first_seen_us.get(essay_id, at_us))


def _add_outcome(delta: BatchState, fact: PhaseOutcome) -> None:
    ending = Ending(fact.status, fact.speaks_for_all, fact.at_us)
    delta.merge(BatchState(outcomes={fact.phase: {fact.repeat_key: ending}}))
    for outcome, essays in ((Outcome.COMPLETED, fact.completed), (Outcome.FAILED, fact.failed)):
        if fact.repeat_key == TIMED:
            mark = Mark(outcome, fact.at_us)
            for essay_id in essays:
                _mark(delta, fact.phase, essay_id, mark)
        elif essays:
            listed = delta.outcome_marks.setdefault(fact.phase, {}).setdefault(fact.repeat_key, {})
            for essay_id in essays:
                if _is_worse(outcome, listed.get(essay_id)):
                    listed[essay_id] = outcome
                _see(delta, essay_id, fact.at_us)


def _registered(fact: EssaysRegistered) -> BatchState:
    first_seen_us = dict.fromkeys(fact.essay_ids, fact.at_us)
    return BatchState(first_seen_us=first_seen_us, expected=Expected(fact.expected_count, fact.at_us))
