"""The law of completion against an independent oracle, in both directions: never complete without the law's reason,
and complete as soon as its condition holds."""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import event, given, settings

from bcs.domain.progress import Evaluation, Standing, summarize
from bcs.domain.resolution import resolve
from bcs.domain.state import BatchState, delta_of
from tests.property.law_cases import Case, cases, cases_told_anew
from tests.property.law_oracle import Expected

EXAMPLES = int(os.environ.get("BCS_TEST_LAW_EXAMPLES", "80"))
"""How many cases each test tries. `BCS_TEST_LAW_EXAMPLES=20000` is a run of some minutes, after a change of the law."""

STANDINGS = {
    Standing.COMPLETED: Expected.COMPLETED,
    Standing.FAILED: Expected.FAILED,
    Standing.FAILED_BEFORE: Expected.FAILED_BEFORE,
    Standing.LEFT_OUT: Expected.LEFT_OUT,
    Standing.JOINED_AFTER_REPORT: Expected.NOTHING_KNOWN,
    Standing.NOT_KNOWN: Expected.NOTHING_KNOWN,
}


def cases_to_try(call_multiplexed: int = 1) -> settings:
    return settings(deadline=None, max_examples=EXAMPLES // call_multiplexed)


@cases_to_try()
@given(cases())
def test_completeness_and_standings_are_those_of_the_oracle(case: Case) -> None:
    state = delta_of(case.facts)
    evaluation = Evaluation(state, case.law)
    for name, ruling in case.rulings().items():
        event(f"complete: {ruling.complete}; essays known: {bool(ruling.standings)}")
        assert evaluation.progress(name).complete == ruling.complete, name
        stands = evaluation.standings(name)
        assert {essay: STANDINGS[stands(essay)] for essay in state.first_seen_us} == ruling.standings
        progress, counts = evaluation.progress(name), Counter(ruling.standings.values())
        assert (progress.completed, progress.failed) == (counts[Expected.COMPLETED], counts[Expected.FAILED])
        assert progress.failed_before == counts[Expected.FAILED_BEFORE]
        assert progress.left_out == counts[Expected.LEFT_OUT]
        assert progress.covered == (ruling.covered and bool(ruling.standings))
        for standing in counts:
            event(f"standing: {standing}")


@cases_to_try(call_multiplexed=2)
@given(cases_told_anew())
def test_order_repetition_and_grouping_change_neither_state_nor_answers(told: tuple[Case, list[BatchState]]) -> None:
    case, deltas = told
    state = BatchState()
    for delta in deltas:
        state.merge(delta)
    assert state == delta_of(case.facts)
    for name, ruling in case.rulings().items():
        assert Evaluation(state, case.law).progress(name).complete == ruling.complete, name


@cases_to_try(call_multiplexed=2)
@given(cases())
def test_resolution_prunes_exactly_the_phases_that_the_law_calls_complete(case: Case) -> None:
    summary, rulings = summarize(delta_of(case.facts), case.law, 1), case.rulings()
    for phase in case.phases:
        assert summary.complete(phase.name) == rulings[phase.name].complete
        resolution = resolve(case.definitions, phase.name, summary)
        assert set(resolution.pruned) == {one.phase for one in resolution.decisions if rulings[one.phase].complete}
