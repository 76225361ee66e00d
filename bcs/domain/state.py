"""The state of a batch: registers that merge, so that neither order nor repetition of facts can matter.

Every register has a join that is commutative, associative and idempotent, which makes the whole state a join
semilattice (Shapiro et al., "Conflict-free Replicated Data Types", 2011): replicas and retries that see the same facts
end with the same state, whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bcs.domain.facts import BatchPhaseEnded, EssayPhaseEnded, Fact, Outcome


@dataclass(frozen=True, slots=True)
class Mark:
    """How a phase ended, and when.

    :param at_us: microseconds since 1970 UTC.
    """

    outcome: Outcome
    at_us: int

    def outweighs(self, other: Mark) -> bool:
        """Whether this mark replaces the other: the newer does; at the same instant, failed does."""
        if self.at_us != other.at_us:
            return self.at_us > other.at_us
        return self.outcome is Outcome.FAILED and other.outcome is not Outcome.FAILED


@dataclass(frozen=True, slots=True)
class Expected:
    """How many essays the batch was registered with, and when that was said.

    :param at_us: microseconds since 1970 UTC.
    """

    count: int
    at_us: int

    def outweighs(self, other: Expected) -> bool:
        """Whether this count replaces the other: the newer does; at the same instant, the larger does."""
        return (self.at_us, self.count) > (other.at_us, other.count)


@dataclass(slots=True)
class BatchState:
    """Everything that is known about a batch. The same shape serves as a delta: a small state to be absorbed.

    :param essay_marks: phase to essay to mark.
    :param batch_marks: phase to the mark that stands for the whole batch.
    :param known_since_us: every essay that is known to belong to the batch, with the earliest time it was known.
    :param expected: how many essays the batch was registered with, where it was.
    """

    essay_marks: dict[str, dict[str, Mark]] = field(default_factory=dict)
    batch_marks: dict[str, Mark] = field(default_factory=dict)
    known_since_us: dict[str, int] = field(default_factory=dict)
    expected: Expected | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing at all is known."""
        return not (self.essay_marks or self.batch_marks or self.known_since_us or self.expected)

    @property
    def phases(self) -> set[str]:
        """The phases that any mark is about."""
        return self.essay_marks.keys() | self.batch_marks.keys()

    def absorb(self, delta: BatchState) -> BatchState:
        """Merge another state into this one.

        :returns: what changed: the registers of the delta that won. Absorbing the same delta again changes nothing.
        """
        changed = BatchState()
        for phase, marks in delta.essay_marks.items():
            mine = self.essay_marks.setdefault(phase, {})
            won = {essay: mark for essay, mark in marks.items() if essay not in mine or mark.outweighs(mine[essay])}
            if won:
                mine.update(won)
                changed.essay_marks[phase] = won
        for phase, mark in delta.batch_marks.items():
            if phase not in self.batch_marks or mark.outweighs(self.batch_marks[phase]):
                self.batch_marks[phase] = changed.batch_marks[phase] = mark
        for essay, since_us in delta.known_since_us.items():
            if essay not in self.known_since_us or since_us < self.known_since_us[essay]:
                self.known_since_us[essay] = changed.known_since_us[essay] = since_us
        if delta.expected and (self.expected is None or delta.expected.outweighs(self.expected)):
            self.expected = changed.expected = delta.expected
        return changed

    def copy(self) -> BatchState:
        """An independent state with the same content."""
        return BatchState(
            {phase: dict(marks) for phase, marks in self.essay_marks.items()},
            dict(self.batch_marks),
            dict(self.known_since_us),
            self.expected,
        )


def delta_of(facts: Iterable[Fact]) -> BatchState:
    """What a set of facts, in any order, adds to a state."""
    delta = BatchState()
    for fact in facts:
        if isinstance(fact, EssayPhaseEnded):
            marks = delta.essay_marks.setdefault(fact.phase, {})
            mark, known = Mark(fact.outcome, fact.at_us), marks.get(fact.essay_id)
            if known is None or mark.outweighs(known):
                marks[fact.essay_id] = mark
            # An essay that an event names belongs to the batch from then on, registered or not.
            delta.known_since_us[fact.essay_id] = min(fact.at_us, delta.known_since_us.get(fact.essay_id, fact.at_us))
        elif isinstance(fact, BatchPhaseEnded):
            delta.absorb(BatchState(batch_marks={fact.phase: Mark(fact.outcome, fact.at_us)}))
        else:
            known_since_us = dict.fromkeys(fact.essay_ids, fact.at_us)
            delta.absorb(BatchState(known_since_us=known_since_us, expected=Expected(fact.expected_count, fact.at_us)))
    return delta
