"""The explanation lists each blocking essay, and agrees with the phase's progress."""

from __future__ import annotations

from hypothesis import event, given, settings

from bcs.domain.law import CompleteWhen
from bcs.domain.progress import Evaluation, PhaseExplanation, Standing
from bcs.domain.state import BatchState, delta_of
from tests.property.law_cases import Case, cases
from tests.support.tiers import examples

some_cases = settings(deadline=None, max_examples=examples(35))


def explanations(case: Case) -> tuple[BatchState, Evaluation, list[PhaseExplanation]]:
    state = delta_of(case.facts)
    evaluation = Evaluation(state, case.law)
    return state, evaluation, [evaluation.explain(phase.name) for phase in case.phases]


@some_cases
@given(cases())
def test_a_phase_with_essays_is_complete_exactly_when_none_blocks_it(case: Case) -> None:
    state, _, explained = explanations(case)
    may_count = state.expected is not None or not case.require_registration
    for of in explained:
        event(f"complete: {of.progress.complete}, held back: {bool(of.held_back_by)}, missing: {bool(of.missing)}")
        if state.first_seen_us:
            everyone = not of.missing and (may_count or of.progress.covered)
            assert of.progress.complete == (everyone and not of.held_back_by)
        else:
            assert not of.held_back_by


@some_cases
@given(cases())
def test_blocking_essays_are_those_that_the_policy_does_not_accept(case: Case) -> None:
    state, evaluation, explained = explanations(case)
    for of in explained:
        accepted = {Standing.COMPLETED}
        if of.complete_when is CompleteWhen.EVERY_ESSAY_SETTLED and of.progress.completed:
            accepted |= {Standing.FAILED, Standing.FAILED_BEFORE, Standing.LEFT_OUT}
        standings = {essay: evaluation.standings(of.phase)(essay) for essay in sorted(state.first_seen_us)}
        held_back = [(essay, standing) for essay, standing in standings.items() if standing not in accepted]
        assert [(one.essay_id, one.why) for one in of.held_back_by] == held_back
        assert all(one.first_seen_us == state.first_seen_us[one.essay_id] for one in of.held_back_by)
        assert all((one.mark is not None) == (one.why is Standing.FAILED) for one in of.held_back_by)


@some_cases
@given(cases())
def test_the_numbers_of_an_explanation_are_those_of_the_state(case: Case) -> None:
    state, evaluation, explained = explanations(case)
    known, expected = len(state.first_seen_us), state.expected.count if state.expected else 0
    for of in explained:
        assert of.progress == evaluation.progress(of.phase)
        assert of.outstanding == known - len(evaluation.marks(of.phase))
        assert of.missing == (0 if of.progress.covered else max(0, expected - known))
        assert of.progress.outcome_at_us == (of.outcome.at_us if of.outcome else None)
        times = [mark.at_us for mark in evaluation.marks(of.phase).values()]
        times += [of.report.at_us] if of.report else []
        assert (of.newest.at_us if of.newest else None) == max(times, default=None)


@some_cases
@given(cases())
def test_only_an_essay_that_a_report_does_not_cover_joined_after_it(case: Case) -> None:
    state, evaluation, explained = explanations(case)
    for of in explained:
        for essay, first_seen_us in state.first_seen_us.items():
            standing = evaluation.standings(of.phase)(essay)
            if standing in (Standing.JOINED_AFTER_REPORT, Standing.NOT_KNOWN):
                joined_after = of.report is not None and first_seen_us > of.report.at_us
                assert joined_after == (standing is Standing.JOINED_AFTER_REPORT)
