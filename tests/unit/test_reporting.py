"""A report counts over all that is known of its phase, unless that lies further ahead than clocks may differ."""

from __future__ import annotations

import pytest

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
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import Evaluation
from bcs.domain.reporting import report_time_us
from bcs.domain.state import delta_of
from bcs.errors import ReportOutdated

LAW = CompletionLaw({"spellcheck": (), "nlp": ("spellcheck",)})
NOW, SKEW = 1_000, 100
AHEAD = NOW + SKEW
IN_THE_WAY: list[tuple[Fact, str, str | None]] = [
    (EssayPhaseEnded("spellcheck", "a", Outcome.COMPLETED, AHEAD), "essay_phase_ended", "a"),
    (
        PhaseOutcome(
            "spellcheck",
            "completed_successfully",
            completed=(),
            failed=(),
            speaks_for_all=True,
            at_us=AHEAD,
            repeat_key="key",
        ),
        "phase_outcome",
        None,
    ),
    (PhaseReported("spellcheck", Outcome.COMPLETED, AHEAD), "phase_reported", None),
    (RecordedUnder("spellcheck", "definition", AHEAD), "phase_outcome", None),
    (PhaseInvalidated("spellcheck", "a", AHEAD), "phase_invalidated", "a"),
    (EssaysRegistered(("a",), 1, AHEAD), "essay_joined", "a"),
]


def time_of(*facts: Fact) -> int:
    return report_time_us(delta_of(facts), "spellcheck", now_us=NOW, max_skew_us=SKEW)


def test_a_report_comes_after_now_where_all_that_is_known_is_older() -> None:
    assert time_of() == NOW + 1
    assert time_of(EssayPhaseEnded("spellcheck", "a", Outcome.COMPLETED, 5)) == NOW + 1


@pytest.mark.parametrize(
    ("fact", "kind", "essay_id"), IN_THE_WAY, ids=[type(fact).__name__ for fact, _, _ in IN_THE_WAY]
)
def test_a_report_follows_known_facts_and_is_refused_beyond_the_skew(
    fact: Fact, kind: str, essay_id: str | None
) -> None:
    assert time_of(fact) == AHEAD + 1
    with pytest.raises(ReportOutdated) as refused:
        report_time_us(delta_of([fact]), "spellcheck", now_us=NOW - 1, max_skew_us=SKEW)
    assert (refused.value.fact, refused.value.at_us, refused.value.phase) == (kind, AHEAD, "spellcheck")
    assert essay_id is None or kind == "essay_phase_ended" or refused.value.essay_id == essay_id


def test_what_is_known_of_another_phase_is_not_in_the_way() -> None:
    assert time_of(PhaseReported("nlp", Outcome.FAILED, 10**9)) == NOW + 1


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_report_is_what_counts_then(outcome: Outcome) -> None:
    known: list[Fact] = [
        EssaysRegistered(("a", "b"), 2, 1),
        EssayPhaseEnded("spellcheck", "a", Outcome.COMPLETED, AHEAD),
    ]
    known.append(EssayPhaseEnded("spellcheck", "b", Outcome.FAILED, AHEAD))
    report = PhaseReported("spellcheck", outcome, time_of(*known))
    progress = Evaluation(delta_of([*known, report]), LAW).progress("spellcheck")
    assert progress.complete is (outcome is Outcome.COMPLETED)
    assert (progress.completed, progress.failed) == ((2, 0) if progress.complete else (0, 2))
