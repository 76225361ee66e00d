"""What holds a phase back agrees with the verdict, whatever is known."""

from __future__ import annotations

from hypothesis import event, given, settings
from hypothesis import strategies as st

from bcs.domain.facts import BatchPhaseEnded, EssayPhaseEnded, EssaysRegistered, Outcome
from bcs.domain.obstacles import Why, report
from bcs.domain.state import BatchState, delta_of

PHASES = ("spellcheck", "nlp")

phases = st.sampled_from(PHASES)
essays = st.sampled_from(("a", "b", "c"))
outcomes = st.sampled_from(Outcome)
instants = st.integers(0, 4)
facts = st.one_of(
    st.builds(EssayPhaseEnded, phases, essays, outcomes, instants),
    st.builds(BatchPhaseEnded, phases, outcomes, instants),
    st.builds(EssaysRegistered, st.lists(essays, unique=True).map(tuple), st.integers(0, 5), instants),
)
states = st.lists(facts, max_size=10).map(delta_of)


@settings(deadline=None, max_examples=200)
@given(states, phases)
def test_a_phase_is_complete_exactly_when_nothing_holds_it_back(state: BatchState, phase: str) -> None:
    of = report(state, phase)
    whole_completed = of.batch_mark is not None and of.batch_mark.outcome is Outcome.COMPLETED
    anything_said = bool(state.known_since_us) or whole_completed
    event(f"complete: {of.verdict.complete}, held back: {bool(of.held_back_by)}, missing: {bool(of.missing)}")
    assert of.verdict.complete == (anything_said and not of.held_back_by and not of.missing)


@settings(deadline=None, max_examples=200)
@given(states, phases)
def test_the_counts_are_those_of_the_listing(state: BatchState, phase: str) -> None:
    of = report(state, phase)
    failed = [obstacle for obstacle in of.held_back_by if obstacle.why is Why.FAILED]
    assert of.verdict.failed == len(failed)
    assert of.outstanding == len(of.held_back_by) - len(failed)
    assert of.verdict.completed + len(of.held_back_by) == len(state.known_since_us)
    assert all((obstacle.mark is None) != (obstacle.why is Why.FAILED) for obstacle in of.held_back_by)
