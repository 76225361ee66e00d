"""The law of completion once more, written from its text alone and as naively as possible.

It reads the plain list of facts, in any order and with repeats, keeps no state, and goes through the whole list for
every question. It shares nothing with the implementation but the facts' vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
)
from bcs.domain.law import CompleteWhen


class Expected(StrEnum):
    """Where an essay stands in a phase, as the text of the law has it."""

    COMPLETED = "completed"
    FAILED = "failed"
    FAILED_BEFORE = "failed before"
    LEFT_OUT = "left out"
    NOTHING_KNOWN = "nothing known"


@dataclass(frozen=True)
class Ruling:
    """The completion law's result for one phase of a batch."""

    complete: bool
    covered: bool
    standings: Mapping[str, Expected]


class LawOracle:
    """Rules on a plain list of facts.

    :param facts: all that is known of the batch, in any order, repeats included.
    :param requires: phase to the phases that it requires directly.
    :param complete_when: phase to its policy, for every phase.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        requires: Mapping[str, Sequence[str]],
        complete_when: Mapping[str, CompleteWhen],
        *,
        require_registration: bool = False,
    ) -> None:
        self.facts = [_with_earliest_time(fact, facts) for fact in facts]
        self.requires = requires
        self.complete_when = complete_when
        self.require_registration = require_registration

    def rule(self, phase: str) -> Ruling:
        standings = {essay: self.standing(essay, phase) for essay in self.known_essays()}
        return Ruling(self.is_complete(phase), self.has_covering_report(phase), standings)

    # What is known of the batch itself.

    def known_essays(self) -> list[str]:
        """Every essay that a registration, a mark or an outcome names."""
        return sorted({essay for fact in self.facts for essay in _essays_named_by(fact)})

    def first_seen(self, essay: str) -> int:
        return min(fact.at_us for fact in self.facts if essay in _essays_named_by(fact))

    def expected_count(self) -> int | None:
        """The newest registration's count; of several at the same instant the largest."""
        counts = [(fact.at_us, fact.expected_count) for fact in self.facts if isinstance(fact, EssaysRegistered)]
        return max(counts)[1] if counts else None

    # The words on one essay.

    def effective(self, essay: str, phase: str) -> Outcome | None:
        """The newest word on the essay that is not invalidated; on a tie its own mark, then the report."""
        words = [(at, 2, outcome is Outcome.FAILED, outcome) for at, outcome in self._marks(essay, phase)]
        for report in self._reports(phase):
            if self.first_seen(essay) <= report.at_us:
                words.append((report.at_us, 1, report.outcome is Outcome.FAILED, report.outcome))
        outcome = self.newest_outcome(phase)
        if (
            outcome is not None
            and outcome.speaks_for_all
            and self.first_seen(essay) <= outcome.at_us
            and all(self.effective(essay, required) is Outcome.COMPLETED for required in self.requires[phase])
        ):
            words.append((outcome.at_us, 0, False, Outcome.COMPLETED))
        counting = [word for word in words if not self._is_invalidated(phase, essay, word[0])]
        return max(counting, key=lambda word: word[:3])[3] if counting else None

    def standing(self, essay: str, phase: str) -> Expected:
        word = self.effective(essay, phase)
        if word is Outcome.COMPLETED:
            return Expected.COMPLETED
        if word is Outcome.FAILED:
            return Expected.FAILED
        if any(self.effective(essay, before) is Outcome.FAILED for before in self.all_required(phase)):
            return Expected.FAILED_BEFORE
        outcome = self.newest_outcome(phase)
        if (
            outcome is not None
            and self.first_seen(essay) < outcome.at_us
            and not self._is_invalidated(phase, essay, outcome.at_us)
        ):
            return Expected.LEFT_OUT
        return Expected.NOTHING_KNOWN

    def newest_outcome(self, phase: str) -> PhaseOutcome | None:
        """The newest outcome; at the same instant one without `speaks_for_all` wins."""
        outcomes = [fact for fact in self.facts if isinstance(fact, PhaseOutcome) and fact.phase == phase]
        return max(outcomes, key=lambda outcome: (outcome.at_us, not outcome.speaks_for_all), default=None)

    def all_required(self, phase: str) -> set[str]:
        """The phases that a phase requires, directly or indirectly."""
        found = set(self.requires[phase])
        for required in self.requires[phase]:
            found |= self.all_required(required)
        return found

    # The phase.

    def is_complete(self, phase: str) -> bool:
        essays = self.known_essays()
        if not essays:
            return self._is_said_of_the_whole_phase(phase)
        if not self._has_everyone(len(essays)) and not self.has_covering_report(phase):
            return False
        standings = [self.standing(essay, phase) for essay in essays]
        if self.complete_when[phase] is CompleteWhen.EVERY_ESSAY_COMPLETED:
            return all(standing is Expected.COMPLETED for standing in standings)
        return Expected.COMPLETED in standings and Expected.NOTHING_KNOWN not in standings

    def _has_everyone(self, essays: int) -> bool:
        expected = self.expected_count()
        if expected is None:
            return not self.require_registration
        return essays >= expected

    def has_covering_report(self, phase: str) -> bool:
        """True if the newest report is "completed", and every known essay had joined by then."""
        reports = self._reports(phase)
        if not reports:
            return False
        newest = max(reports, key=lambda report: (report.at_us, report.outcome is Outcome.FAILED))
        return (
            newest.outcome is Outcome.COMPLETED
            and not self._is_invalidated(phase, None, newest.at_us)
            and all(self.first_seen(essay) <= newest.at_us for essay in self.known_essays())
        )

    def _is_said_of_the_whole_phase(self, phase: str) -> bool:
        """With no essay known, the newest of report and nameless success; on a tie the report."""
        words = [(report.at_us, 1, report.outcome is Outcome.FAILED) for report in self._reports(phase)]
        outcome = self.newest_outcome(phase)
        if outcome is not None and outcome.speaks_for_all:
            words.append((outcome.at_us, 0, False))
        counting = [word for word in words if not self._is_invalidated(phase, None, word[0])]
        return bool(counting) and not max(counting)[2]

    # The plain facts.

    def _marks(self, essay: str, phase: str) -> list[tuple[int, Outcome]]:
        marks: list[tuple[int, Outcome]] = []
        for fact in self.facts:
            if isinstance(fact, EssayPhaseEnded) and (fact.phase, fact.essay_id) == (phase, essay):
                marks.append((fact.at_us, fact.outcome))
            if isinstance(fact, PhaseOutcome) and fact.phase == phase:
                marks += [(fact.at_us, Outcome.COMPLETED)] * (essay in fact.completed)
                marks += [(fact.at_us, Outcome.FAILED)] * (essay in fact.failed)
        return marks

    def _reports(self, phase: str) -> list[PhaseReported]:
        return [fact for fact in self.facts if isinstance(fact, PhaseReported) and fact.phase == phase]

    def _is_invalidated(self, phase: str, essay: str | None, at_us: int) -> bool:
        """True if a word of that time is strictly older than an invalidation for all, or for the essay."""
        return any(
            isinstance(fact, PhaseInvalidated)
            and fact.phase == phase
            and (fact.essay_id is None or fact.essay_id == essay)
            and at_us < fact.at_us
            for fact in self.facts
        )


def _with_earliest_time(fact: Fact, facts: Sequence[Fact]) -> Fact:
    """A repeat of an outcome without a time of its own keeps the earliest copy's time."""
    if not isinstance(fact, PhaseOutcome) or not fact.repeat_key:
        return fact
    name = (fact.phase, fact.repeat_key)
    copies = [
        other.at_us for other in facts if isinstance(other, PhaseOutcome) and (other.phase, other.repeat_key) == name
    ]
    return replace(fact, at_us=min(copies))


def _essays_named_by(fact: Fact) -> tuple[str, ...]:
    """An invalidation does not add essays to the batch."""
    if isinstance(fact, EssayPhaseEnded):
        return (fact.essay_id,)
    if isinstance(fact, PhaseOutcome):
        return (*fact.completed, *fact.failed)
    if isinstance(fact, EssaysRegistered):
        return fact.essay_ids
    return ()
