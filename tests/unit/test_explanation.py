"""The essays that block a phase are explained one by one."""

from __future__ import annotations

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
)
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.progress import Evaluation, PhaseExplanation, Standing
from bcs.domain.state import Ending, Mark, delta_of

COMPLETED, FAILED = Outcome.COMPLETED, Outcome.FAILED
PHASE = "spellcheck"


def explain(*facts: Fact, complete_when: CompleteWhen = CompleteWhen.EVERY_ESSAY_COMPLETED) -> PhaseExplanation:
    law = CompletionLaw({PHASE: (), "nlp": (PHASE,)}, {PHASE: complete_when})
    return Evaluation(delta_of(facts), law).explain(PHASE)


def reasons(of: PhaseExplanation) -> dict[str, Standing]:
    return {essay.essay_id: essay.why for essay in of.held_back_by}


def test_nothing_holds_back_a_phase_that_every_essay_completed() -> None:
    of = explain(EssaysRegistered(("a", "b"), 2, 1), *(EssayPhaseEnded(PHASE, essay, COMPLETED, 5) for essay in "ab"))
    assert of.progress.complete
    assert (of.held_back_by, of.missing, of.outstanding) == ((), 0, 0)


def test_failed_essays_and_those_of_which_nothing_is_known_are_told_apart() -> None:
    of = explain(
        EssaysRegistered(("a", "b", "c"), 3, 1),
        EssayPhaseEnded(PHASE, "a", COMPLETED, 5),
        EssayPhaseEnded(PHASE, "c", FAILED, 6),
    )
    assert reasons(of) == {"b": Standing.NOT_KNOWN, "c": Standing.FAILED}
    assert [essay.mark for essay in of.held_back_by] == [None, Mark(FAILED, 6)]
    assert (of.progress.completed, of.progress.failed, of.outstanding) == (1, 1, 1)


def test_an_essay_that_joined_after_the_report_is_named_with_when_it_did() -> None:
    of = explain(
        EssaysRegistered(("a",), 1, 1), PhaseReported(PHASE, COMPLETED, 5), EssayPhaseEnded("nlp", "b", COMPLETED, 6)
    )
    assert reasons(of) == {"b": Standing.JOINED_AFTER_REPORT}
    assert of.held_back_by[0].first_seen_us == 6
    assert of.report == Mark(COMPLETED, 5)


def test_a_report_of_failure_holds_back_those_that_had_joined_by_then() -> None:
    of = explain(EssaysRegistered(("a",), 1, 1), PhaseReported(PHASE, FAILED, 5), EssaysRegistered(("b",), 2, 6))
    assert reasons(of) == {"a": Standing.FAILED, "b": Standing.JOINED_AFTER_REPORT}
    assert of.held_back_by[0].mark == of.report == Mark(FAILED, 5)


def test_an_essay_that_failed_before_the_report_holds_nothing_back() -> None:
    of = explain(EssayPhaseEnded(PHASE, "a", FAILED, 4), PhaseReported(PHASE, COMPLETED, 5))
    assert of.progress.complete
    assert of.held_back_by == ()
    assert of.newest == Mark(COMPLETED, 5)


def test_an_essay_that_the_newest_outcome_does_not_name_is_left_out_of_it() -> None:
    registered = EssaysRegistered(("a", "b"), 2, 1)
    outcome = PhaseOutcome(PHASE, "completed_successfully", completed=("a",), failed=(), speaks_for_all=False, at_us=5)
    of = explain(registered, outcome)
    assert reasons(of) == {"b": Standing.LEFT_OUT}
    assert of.outcome == Ending("completed_successfully", False, 5)
    settled = explain(registered, outcome, complete_when=CompleteWhen.EVERY_ESSAY_SETTLED)
    assert (settled.held_back_by, settled.progress.complete) == ((), True)


def test_an_invalidated_report_and_outcome_are_no_part_of_the_explanation() -> None:
    registered = EssaysRegistered(("a",), 1, 1)
    facts = (
        PhaseReported(PHASE, COMPLETED, 5),
        PhaseOutcome(PHASE, "cancelled", completed=(), failed=(), speaks_for_all=False, at_us=5),
    )
    of = explain(registered, *facts, PhaseInvalidated(PHASE, None, 6))
    assert (of.report, of.outcome, of.newest) == (None, None, None)
    assert reasons(of) == {"a": Standing.NOT_KNOWN}


def test_unnamed_expected_essays_are_missing_unless_a_report_covers_them() -> None:
    registered, one_done = EssaysRegistered(("a",), 3, 1), EssayPhaseEnded(PHASE, "a", COMPLETED, 2)
    assert explain(registered, one_done).missing == 2
    assert explain(registered, one_done, PhaseReported(PHASE, COMPLETED, 5)).missing == 0
    assert explain(registered, one_done, PhaseReported(PHASE, FAILED, 1)).missing == 2


def test_the_newest_mark_is_the_newest_of_essays_and_report() -> None:
    essay, report = EssayPhaseEnded(PHASE, "a", COMPLETED, 7), PhaseReported(PHASE, COMPLETED, 6)
    assert explain(essay, report).newest == Mark(COMPLETED, 7)
    assert explain(EssaysRegistered(("a",), 1, 1)).newest is None
