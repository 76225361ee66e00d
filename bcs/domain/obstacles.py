"""What keeps a phase from being complete: the essays that hold it back, and why each one does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bcs.domain.facts import Outcome
from bcs.domain.state import BatchState, Mark
from bcs.domain.verdicts import PhaseVerdict, effective_mark, judge


class Why(StrEnum):
    """Why an essay holds a phase back."""

    FAILED = "failed"
    NO_MARK = "no_mark"
    JOINED_AFTER_BATCH_MARK = "joined_after_batch_mark"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """An essay that holds a phase back.

    :param known_since_us: when the essay became known, in microseconds since 1970 UTC.
    :param mark: the one that says "failed"; None when no mark speaks for the essay.
    """

    essay_id: str
    why: Why
    known_since_us: int
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """A phase's verdict with all that led to it.

    :param outstanding: known essays for which no mark speaks.
    :param missing: expected essays that nobody has named, and for which no batch mark speaks.
    :param held_back_by: in the order of their ids.
    :param newest: the newest mark of all, the batch's or an essay's.
    """

    phase: str
    verdict: PhaseVerdict
    outstanding: int
    missing: int
    held_back_by: tuple[Obstacle, ...]
    batch_mark: Mark | None
    newest: Mark | None


def report(state: BatchState, phase: str) -> PhaseReport:
    """What is known of a phase, and what keeps it from being complete."""
    verdict = judge(state, phase)
    whole = state.batch_marks.get(phase)
    marks = [*state.essay_marks.get(phase, {}).values(), *([whole] if whole else [])]
    return PhaseReport(
        phase,
        verdict,
        len(state.known_since_us) - verdict.completed - verdict.failed,
        _missing(state, whole),
        tuple(obstacle for essay_id in sorted(state.known_since_us) if (obstacle := _obstacle(state, phase, essay_id))),
        whole,
        max(marks, key=lambda mark: mark.at_us, default=None),
    )


def _obstacle(state: BatchState, phase: str, essay_id: str) -> Obstacle | None:
    since_us, mark = state.known_since_us[essay_id], effective_mark(state, phase, essay_id)
    if mark is not None:
        return Obstacle(essay_id, Why.FAILED, since_us, mark) if mark.outcome is Outcome.FAILED else None
    # A batch mark would have completed it had it joined in time; one that says "failed" completes nobody.
    whole = state.batch_marks.get(phase)
    late = whole is not None and whole.outcome is Outcome.COMPLETED
    return Obstacle(essay_id, Why.JOINED_AFTER_BATCH_MARK if late else Why.NO_MARK, since_us, None)


def _missing(state: BatchState, whole: Mark | None) -> int:
    """As `judge` has it: a batch mark speaks for essays that nobody has named, unless one joined after it."""
    known = state.known_since_us
    missing = max(0, state.expected.count - len(known)) if state.expected else 0
    covered = whole is not None and whole.outcome is Outcome.COMPLETED and max(known.values(), default=0) <= whole.at_us
    return 0 if covered else missing
