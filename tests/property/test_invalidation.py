"""What an invalidation says it takes back, against an independent oracle; and what counts after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
)
from bcs.domain.invalidation import Invalidation, invalidating
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import Evaluation, Standing
from bcs.domain.slices import at_once
from bcs.domain.state import BatchState, delta_of
from bcs.errors import InvalidationOutdated
from tests.property.law_cases import TIMES, Case, cases
from tests.property.law_oracle import Expected
from tests.support.tiers import examples

LAW = CompletionLaw({"spellcheck": (), "nlp": ("spellcheck",)})
COMPLETED, FAILED = Outcome.COMPLETED, Outcome.FAILED
SKEW, FAR = 10, 10**6
MARKS = {Expected.COMPLETED, Expected.FAILED}


@st.composite
def invalidated(draw: st.DrawFn) -> tuple[Case, list[str], list[str] | None, int]:
    """A case, phases of it, some of its essays or all, and the time now."""
    case = draw(cases())
    phases = draw(st.lists(st.sampled_from([phase.name for phase in case.phases]), min_size=1, unique=True))
    known = sorted(delta_of(case.facts).first_seen_us)
    essays = draw(st.none() | st.lists(st.sampled_from(known), min_size=1, unique=True)) if known else None
    return case, phases, essays, draw(TIMES)


@settings(deadline=None, max_examples=examples(30))
@given(invalidated())
def test_what_is_taken_back_is_what_the_oracle_finds_changed(
    told: tuple[Case, list[str], list[str] | None, int],
) -> None:
    case, phases, essays, now_us = told
    state = delta_of(case.facts)
    plan = at_once(invalidating(state, case.law, phases, essays, now_us=now_us, max_skew_us=SKEW))
    assert state == delta_of(case.facts), "the plan changes nothing"
    after = replace(case, facts=(*case.facts, *plan.facts))
    before_rulings, after_rulings = case.rulings(), after.rulings()
    ended = {name for name, ruling in before_rulings.items() if ruling.complete and not after_rulings[name].complete}
    assert set(plan.no_longer_complete) == ended
    event(f"no longer complete: {len(ended)}, of them not named: {len(ended.difference(phases))}")
    assert [each.phase for each in plan.phases] == phases
    for each in plan.phases:
        before, now = before_rulings[each.phase], after_rulings[each.phase]
        assert (each.was_complete, each.complete) == (before.complete, now.complete)
        lost = {
            essay: standing.name
            for essay, standing in before.standings.items()
            if standing in MARKS and now.standings[essay] is not standing
        }
        assert {essay: mark.outcome.name for essay, mark in each.marks} == lost
        assert all(now.standings[essay] not in MARKS for essay in (before.standings if essays is None else essays))
        assert each.at_us > now_us


@settings(deadline=None, max_examples=examples(15))
@given(invalidated())
def test_only_a_newer_completion_counts_again_whatever_the_order(
    told: tuple[Case, list[str], list[str] | None, int],
) -> None:
    case, phases, essays, now_us = told
    state = delta_of(case.facts)
    plan = at_once(invalidating(state, case.law, phases, essays, now_us=now_us, max_skew_us=SKEW))
    for each in plan.phases:
        for essay in sorted(state.first_seen_us) if essays is None else essays:
            for at_us, counts in ((each.at_us - 1, False), (each.at_us, True)):
                late = EssayPhaseEnded(each.phase, essay, COMPLETED, at_us)
                first, second = delta_of([*case.facts, late]), delta_of(plan.facts)
                first.merge(second)
                second.merge(delta_of([late, *reversed(case.facts)]))
                assert first == second
                standing = Evaluation(first, case.law).standings(each.phase)(essay)
                assert (standing is Standing.COMPLETED) is counts


def plan_of(*facts: Fact, essays: list[str] | None = None, now_us: int = 100, skew_us: int = 10) -> Invalidation:
    state = delta_of(facts)
    return at_once(invalidating(state, LAW, ["spellcheck"], essays, now_us=now_us, max_skew_us=skew_us))


def test_the_time_is_later_than_now_and_than_all_that_is_known_of_the_phase() -> None:
    known: list[Fact] = [EssaysRegistered(("a", "b"), 2, FAR), PhaseReported("nlp", COMPLETED, FAR)]
    assert [fact.at_us for fact in plan_of(*known).facts] == [101], "other phases and the roster are not in the way"
    a_little_ahead = EssayPhaseEnded("spellcheck", "a", COMPLETED, 110)
    assert [fact.at_us for fact in plan_of(*known, a_little_ahead).facts] == [111]
    assert [(fact.essay_id, fact.at_us) for fact in plan_of(*known, a_little_ahead, essays=["b"]).facts] == [("b", 101)]
    before = [PhaseInvalidated("spellcheck", None, 105), PhaseInvalidated("spellcheck", "a", 107)]
    assert [fact.at_us for fact in plan_of(*known, *before).facts] == [108]
    assert [fact.at_us for fact in plan_of(*known, *before, essays=["b"]).facts] == [106]


IN_THE_WAY: list[tuple[Fact, str, str | None]] = [
    (EssayPhaseEnded("spellcheck", "a", FAILED, FAR), "essay_phase_ended", "a"),
    (PhaseReported("spellcheck", COMPLETED, FAR), "phase_reported", None),
    (PhaseInvalidated("spellcheck", None, FAR), "phase_invalidated", None),
    (PhaseInvalidated("spellcheck", "a", FAR), "phase_invalidated", "a"),
    (
        PhaseOutcome("spellcheck", "s", completed=("a",), failed=(), speaks_for_all=False, at_us=FAR, repeat_key="key"),
        "phase_outcome",
        None,
    ),
]


@pytest.mark.parametrize(("fact", "kind", "essay_id"), IN_THE_WAY)
def test_a_fact_that_would_not_be_superseded_is_named(fact: Fact, kind: str, essay_id: str | None) -> None:
    with pytest.raises(InvalidationOutdated) as refused:
        plan_of(fact)
    named = refused.value
    assert (named.phase, named.fact, named.essay_id, named.at_us) == ("spellcheck", kind, essay_id, FAR)


def test_a_batch_of_reports_alone_loses_them() -> None:
    [taken_back] = plan_of(PhaseReported("spellcheck", COMPLETED, 5)).phases
    assert (taken_back.was_complete, taken_back.complete, taken_back.marks) == (True, False, ())
    assert taken_back.report is not None
    assert not plan_of().no_longer_complete
    assert BatchState().empty
