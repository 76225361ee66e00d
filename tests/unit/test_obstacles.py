"""What holds a phase back is told essay by essay, and never otherwise than the verdict."""

from __future__ import annotations

from bcs.domain.facts import BatchPhaseEnded, EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.obstacles import PhaseReport, Why, report
from bcs.domain.state import Mark, delta_of

COMPLETED, FAILED = Outcome.COMPLETED, Outcome.FAILED
PHASE = "spellcheck"


def told(*facts: Fact) -> PhaseReport:
    return report(delta_of(facts), PHASE)


def reasons(of: PhaseReport) -> dict[str, Why]:
    return {obstacle.essay_id: obstacle.why for obstacle in of.held_back_by}


def test_nothing_holds_back_a_phase_that_every_essay_completed() -> None:
    of = told(EssaysRegistered(("a", "b"), 2, 1), *(EssayPhaseEnded(PHASE, essay, COMPLETED, 5) for essay in "ab"))
    assert of.verdict.complete
    assert (of.held_back_by, of.missing, of.outstanding) == ((), 0, 0)


def test_failed_essays_and_those_without_a_mark_are_told_apart() -> None:
    of = told(
        EssaysRegistered(("a", "b", "c"), 3, 1),
        EssayPhaseEnded(PHASE, "a", COMPLETED, 5),
        EssayPhaseEnded(PHASE, "c", FAILED, 6),
    )
    assert reasons(of) == {"b": Why.NO_MARK, "c": Why.FAILED}
    assert [obstacle.mark for obstacle in of.held_back_by] == [None, Mark(FAILED, 6)]
    assert (of.verdict.completed, of.verdict.failed, of.outstanding) == (1, 1, 1)


def test_an_essay_that_joined_after_the_batch_mark_is_named_with_when_it_did() -> None:
    of = told(
        EssaysRegistered(("a",), 1, 1), BatchPhaseEnded(PHASE, COMPLETED, 5), EssayPhaseEnded("nlp", "b", COMPLETED, 6)
    )
    assert reasons(of) == {"b": Why.JOINED_AFTER_BATCH_MARK}
    assert of.held_back_by[0].known_since_us == 6
    assert of.batch_mark == Mark(COMPLETED, 5)


def test_a_batch_that_failed_holds_back_those_that_had_joined_and_later_ones_have_no_mark() -> None:
    of = told(EssaysRegistered(("a",), 1, 1), BatchPhaseEnded(PHASE, FAILED, 5), EssaysRegistered(("b",), 2, 6))
    assert reasons(of) == {"a": Why.FAILED, "b": Why.NO_MARK}
    assert of.held_back_by[0].mark == of.batch_mark == Mark(FAILED, 5)


def test_an_essay_that_failed_before_the_batch_completed_holds_nothing_back() -> None:
    of = told(EssayPhaseEnded(PHASE, "a", FAILED, 4), BatchPhaseEnded(PHASE, COMPLETED, 5))
    assert of.verdict.complete
    assert of.held_back_by == ()
    assert of.newest == Mark(COMPLETED, 5)


def test_expected_essays_that_nobody_named_are_counted_unless_a_batch_mark_speaks_for_them() -> None:
    registered, one_done = EssaysRegistered(("a",), 3, 1), EssayPhaseEnded(PHASE, "a", COMPLETED, 2)
    assert told(registered, one_done).missing == 2
    assert told(registered, one_done, BatchPhaseEnded(PHASE, COMPLETED, 5)).missing == 0
    assert told(registered, one_done, BatchPhaseEnded(PHASE, FAILED, 1)).missing == 2


def test_the_newest_mark_is_the_newest_of_essays_and_batch() -> None:
    essay, batch = EssayPhaseEnded(PHASE, "a", COMPLETED, 7), BatchPhaseEnded(PHASE, COMPLETED, 6)
    assert told(essay, batch).newest == Mark(COMPLETED, 7)
    assert told(EssaysRegistered(("a",), 1, 1)).newest is None
