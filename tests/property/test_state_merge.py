"""The registers of a state are a join semilattice, and a merge returns exactly what changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
    RecordedUnder,
    parts_of,
)
from bcs.domain.history import facts_in
from bcs.domain.state import BatchState, delta_of
from tests.support.tiers import examples

phases = st.sampled_from(("spellcheck", "nlp"))
essays = st.sampled_from(("a", "b", "c"))
lists = st.lists(essays, unique=True, max_size=3).map(tuple)
ends = st.sampled_from(Outcome)
# So few instants that ties are common, and two that differ by one where floats no longer do.
instants = st.sampled_from([0, 1, 2, 3, 2**53, 2**53 + 1])
# Copies of one outcome need not agree: the registers merge whatever they are given.
keys = st.sampled_from(("", "one", "other"))
statuses = st.sampled_from(("completed_successfully", "failed_critically"))
outcomes = st.builds(
    PhaseOutcome,
    phases,
    statuses,
    completed=lists,
    failed=lists,
    speaks_for_all=st.booleans(),
    at_us=instants,
    repeat_key=keys,
)
facts = st.one_of(
    st.builds(EssayPhaseEnded, phases, essays, ends, instants),
    outcomes,
    st.builds(PhaseReported, phases, ends, instants),
    st.builds(PhaseInvalidated, phases, st.none() | essays, instants),
    st.builds(RecordedUnder, phases, st.sampled_from(("one", "other")), instants),
    st.builds(EssaysRegistered, lists, st.integers(0, 5), instants),
)
states = st.lists(facts, max_size=12).map(delta_of)

no_deadline = settings(deadline=None, max_examples=examples(35))


def joined(left: BatchState, right: BatchState) -> BatchState:
    result = left.copy()
    result.merge(right)
    return result


def registers(state: BatchState) -> dict[tuple[str | None, ...], Any]:
    """Every register on its own."""
    flat: dict[tuple[str | None, ...], Any] = {("expected",): state.expected} if state.expected else {}
    flat |= {("known", essay): since for essay, since in state.first_seen_us.items()}
    flat |= {("report", phase): mark for phase, mark in state.reports.items()}
    for phase, marks in state.essay_marks.items():
        flat |= {("mark", phase, essay): mark for essay, mark in marks.items()}
    for phase, by_key in state.outcome_marks.items():
        for key, listed in by_key.items():
            flat |= {("listed", phase, key, essay): outcome for essay, outcome in listed.items()}
    for phase, endings in state.outcomes.items():
        flat |= {("outcome", phase, key): ending for key, ending in endings.items()}
    for phase, times in state.invalidations.items():
        flat |= {("invalidated", phase, essay): at_us for essay, at_us in times.items()}
    for phase, under in state.definitions.items():
        flat |= {("definition", phase, definition): at_us for definition, at_us in under.items()}
    return flat


@no_deadline
@given(states, states, states)
def test_the_join_is_commutative_associative_and_idempotent(a: BatchState, b: BatchState, c: BatchState) -> None:
    assert joined(a, b) == joined(b, a)
    assert joined(joined(a, b), c) == joined(a, joined(b, c))
    assert joined(a, a) == a
    assert joined(a, BatchState()) == joined(BatchState(), a) == a


@no_deadline
@given(states, states)
def test_a_merge_returns_exactly_what_changed(before: BatchState, delta: BatchState) -> None:
    state = before.copy()
    changed = state.merge(delta)
    old, new = registers(before), registers(state)
    assert registers(changed) == {name: value for name, value in new.items() if old.get(name) != value}
    assert new.keys() == old.keys() | registers(delta).keys()
    assert state.merge(delta).empty
    assert joined(before, changed) == state


@no_deadline
@given(states, states, states)
def test_a_merge_leaves_the_delta_alone_and_shares_nothing_with_it(
    state: BatchState, delta: BatchState, later: BatchState
) -> None:
    delta_before = delta.copy()
    changed = state.merge(delta)
    changed_before = changed.copy()
    copied = state.copy()
    state.merge(later)
    assert (delta, changed) == (delta_before, changed_before)
    copied_before = copied.copy()
    copied.merge(later)
    assert copied == state
    assert joined(copied_before, later) == copied


@no_deadline
@given(states, outcomes, instants)
def test_a_later_copy_of_an_outcome_without_a_time_changes_nothing(
    state: BatchState, outcome: PhaseOutcome, later: int
) -> None:
    first = replace(outcome, repeat_key="key")
    state.merge(delta_of([first]))
    copy = replace(first, at_us=max(first.at_us, later))
    assert state.merge(delta_of([copy])).empty


@no_deadline
@given(states)
def test_the_phases_of_a_state_are_those_that_any_register_names(state: BatchState) -> None:
    named = {name[1] for name in registers(state) if name[0] not in ("expected", "known", "definition")}
    assert state.phases == named
    assert state.empty == (not registers(state))


@no_deadline
@given(st.lists(facts, max_size=4), st.integers(1, 3))
def test_the_parts_of_facts_say_together_what_the_facts_say(whole: list[Fact], essays: int) -> None:
    parts = [part for fact in whole for part in parts_of(fact, essays)]
    assert all(facts_in(part) <= essays + 1 for part in parts)
    assert delta_of(parts) == delta_of(whole)


@no_deadline
@given(states, st.integers(1, 3))
def test_the_parts_of_a_state_are_the_state_when_they_are_merged(state: BatchState, registers: int) -> None:
    merged = BatchState()
    for part in state.parts(registers):
        assert part.size <= registers
        merged.merge(part)
    assert merged == state
    assert state.size == sum(part.size for part in state.parts(registers))
