"""A phase with `rerun_when_changed` runs again if facts of an older definition complete it, and only then."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from bcs.domain.facts import (
    EssayPhaseEnded,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseReported,
    RecordedUnder,
    recorded_under,
)
from bcs.domain.pipelines import Phase, PipelineDefinitions
from bcs.domain.progress import Evaluation, summarize
from bcs.domain.reporting import report_time_us
from bcs.domain.resolution import Reason, resolve
from bcs.domain.state import delta_of
from tests.property.law_cases import LATEST, Case, cases
from tests.support.tiers import examples

some = settings(deadline=None, max_examples=examples(20))

IN_USE, OLD, OLDER = "in use", "old", "older"
FAR = 10**6


@st.composite
def recorded_cases(draw: st.DrawFn) -> tuple[Case, str, list[tuple[Fact, str | None]]]:
    """A case, one of its phases, and the definition of it under which each fact was recorded; None where unknown."""
    case = draw(cases())
    name = draw(st.sampled_from([phase.name for phase in case.phases]))
    if draw(st.booleans()):
        reloaded_us = draw(st.integers(0, LATEST))
        return case, name, [(fact, OLD if fact.at_us < reloaded_us else IN_USE) for fact in case.facts]
    under = st.sampled_from((IN_USE, IN_USE, OLD, OLDER, None))
    return case, name, [(fact, draw(under)) for fact in case.facts]


def facts_of(recorded: list[tuple[Fact, str | None]], phase: str) -> list[Fact]:
    under = (recorded_under([fact], {phase: definition}) for fact, definition in recorded if definition)
    return [*(fact for fact, _ in recorded), *chain.from_iterable(under)]


def evaluation(case: Case, phase: str, facts: list[Fact]) -> Evaluation:
    phases = {each.name: each for each in case.phases}
    law = PipelineDefinitions(phases.values()).law(require_registration=case.require_registration)
    with_definition = type(law)(
        {name: each.requires for name, each in phases.items()},
        {name: each.complete_when for name, each in phases.items()},
        require_registration=case.require_registration,
        definitions={phase: IN_USE},
    )
    return Evaluation(delta_of(facts), with_definition)


@pytest.mark.release
@some
@given(recorded_cases())
def test_a_phase_runs_again_if_its_newer_facts_alone_do_not_complete_it(
    drawn: tuple[Case, str, list[tuple[Fact, str | None]]],
) -> None:
    case, phase, recorded = drawn
    progress = evaluation(case, phase, facts_of(recorded, phase)).progress(phase)
    assert progress.complete == case.rulings()[phase].complete, "whatever the definitions"
    others = [
        (fact.at_us, definition)
        for fact, definition in recorded
        if definition in (OLD, OLDER) and recorded_under([fact], {phase: definition})
    ]
    if not others:
        assert progress.older is None
        return
    newest_us, _ = max(others)
    newer = replace(case, facts=(*case.facts, PhaseInvalidated(phase, None, newest_us + 1)))
    again = progress.complete and not newer.rulings()[phase].complete
    event(f"complete: {progress.complete}, runs again: {again}")
    assert (progress.older is not None) == again
    if progress.older:
        assert (progress.older.at_us, progress.older.definition) == max(others)


MARKS = st.builds(EssayPhaseEnded, st.just("p"), st.sampled_from("abc"), st.just(Outcome.COMPLETED), st.integers(1, 6))


@some
@given(st.lists(st.tuples(MARKS, st.sampled_from((IN_USE, OLD))), min_size=1, max_size=9))
def test_no_essay_is_pruned_that_ran_only_under_the_old_definition(told: list[tuple[EssayPhaseEnded, str]]) -> None:
    """The promise itself, without the rule that keeps it."""
    definitions = PipelineDefinitions([Phase("p", rerun_when_changed=True)])
    in_use = definitions.phases["p"].definition
    recorded: list[Fact] = []
    for fact, under in told:
        recorded += [fact, *recorded_under([fact], {"p": in_use if under == IN_USE else OLD})]
    [decision] = resolve(
        definitions, "p", summarize(delta_of(recorded), definitions.law(require_registration=False), 1)
    ).decisions
    event(decision.reason)
    names = {fact.essay_id for fact, _ in told}
    if not decision.runs:
        for essay in names:
            newest = max(fact.at_us for fact, _ in told if fact.essay_id == essay)
            assert any((fact.essay_id, fact.at_us, under) == (essay, newest, IN_USE) for fact, under in told)
    elif all(under == IN_USE for _, under in told):
        raise AssertionError("nothing has changed")


@pytest.mark.release
@some
@given(recorded_cases())
def test_a_report_under_the_definition_in_use_ends_it(drawn: tuple[Case, str, list[tuple[Fact, str | None]]]) -> None:
    case, phase, recorded = drawn
    facts = facts_of(recorded, phase)
    at_us = report_time_us(delta_of(facts), phase, now_us=0, max_skew_us=FAR)
    facts += [PhaseReported(phase, Outcome.COMPLETED, at_us), RecordedUnder(phase, IN_USE, at_us)]
    progress = evaluation(case, phase, facts).progress(phase)
    assert progress.complete
    assert progress.older is None


def test_back_to_the_old_definition_runs_nothing_that_never_ran_under_the_new_one() -> None:
    before, after = (PipelineDefinitions([Phase("p", rerun_when_changed=True, revision=text)]) for text in "12")
    facts: list[Fact] = [EssayPhaseEnded("p", "a", Outcome.COMPLETED, 5)]
    facts += recorded_under(facts, {"p": before.phases["p"].definition})
    state = delta_of(facts)

    def reason(definitions: PipelineDefinitions) -> Reason:
        summary = summarize(state, definitions.law(require_registration=False), 1)
        return resolve(definitions, "p", summary).decisions[0].reason

    assert reason(after) is Reason.DEFINITION_CHANGED
    assert reason(before) is Reason.ALREADY_COMPLETED
