"""State is a set of facts that merge: order and repetition cannot matter, and the verdicts follow the design."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from bcs.domain.facts import BatchPhaseEnded, EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.state import BatchState, delta_of
from bcs.domain.verdicts import PhaseVerdict, judge, summarize

PHASES = ("spellcheck", "nlp")
ESSAYS = ("a", "b", "c")

phases = st.sampled_from(PHASES)
essays = st.sampled_from(ESSAYS)
outcomes = st.sampled_from(Outcome)
# So few instants that ties are common, and two that differ by one where floats no longer do.
instants = st.sampled_from([0, 1, 2, 3, 2**53, 2**53 + 1])
facts = st.one_of(
    st.builds(EssayPhaseEnded, phases, essays, outcomes, instants),
    st.builds(BatchPhaseEnded, phases, outcomes, instants),
    st.builds(EssaysRegistered, st.lists(essays, unique=True).map(tuple), st.integers(0, 5), instants),
)
fact_lists = st.lists(facts, max_size=14)
states = fact_lists.map(delta_of)

no_deadline = settings(deadline=None, max_examples=80)


@st.composite
def retold(draw: st.DrawFn) -> tuple[list[Fact], list[Fact]]:
    """The same facts twice; the second time in any order, with repetitions."""
    told = draw(fact_lists)
    repeated = draw(st.lists(st.sampled_from(told), max_size=10)) if told else []
    return told, draw(st.permutations(told + repeated))


def cut(facts: list[Fact], at: list[int]) -> list[list[Fact]]:
    """The facts in consecutive groups."""
    borders = [0, *sorted(min(position, len(facts)) for position in at), len(facts)]
    return [facts[start:end] for start, end in pairwise(borders)]


def joined(left: BatchState, right: BatchState) -> BatchState:
    result = left.copy()
    result.absorb(right)
    return result


def registers(state: BatchState) -> dict[tuple[str, ...], Any]:
    """Every register on its own."""
    flat: dict[tuple[str, ...], Any] = {("batch", phase): mark for phase, mark in state.batch_marks.items()}
    flat |= {("known", essay): since for essay, since in state.known_since_us.items()}
    flat |= {
        ("essay", phase, essay): mark for phase, marks in state.essay_marks.items() for essay, mark in marks.items()
    }
    return flat | ({("expected",): state.expected} if state.expected else {})


def verdict_by_design(told: list[Fact], phase: str) -> PhaseVerdict:
    """The law of design.md, section 5, on the bare list of facts."""
    joined_at: dict[str, int] = {}
    own: dict[str, tuple[int, bool]] = {}  # newest wins; at the same instant failed (True) does
    whole: tuple[int, bool] | None = None
    expected: tuple[int, int] | None = None
    for fact in told:
        named: tuple[str, ...] = ()
        if isinstance(fact, EssayPhaseEnded):
            named = (fact.essay_id,)
            if fact.phase == phase:
                said = (fact.at_us, fact.outcome is Outcome.FAILED)
                own[fact.essay_id] = max(own.get(fact.essay_id, said), said)
        elif isinstance(fact, BatchPhaseEnded):
            if fact.phase == phase:
                said = (fact.at_us, fact.outcome is Outcome.FAILED)
                whole = max(whole or said, said)
        else:
            named = fact.essay_ids
            expected = max(expected or (0, 0), (fact.at_us, fact.expected_count))
        for essay in named:
            joined_at[essay] = min(joined_at.get(essay, fact.at_us), fact.at_us)
    whole_completed = whole is not None and not whole[1]
    if not joined_at:
        return PhaseVerdict(whole_completed, 0, 0)
    ends: list[bool | None] = []  # for each essay: None, completed (False), failed (True)
    for essay, since in joined_at.items():
        mine = own.get(essay)
        counts = whole is not None and since <= whole[0]
        if whole is not None and counts and (mine is None or whole[0] > mine[0]):
            mine = whole
        ends.append(None if mine is None else mine[1])
    covered = whole is not None and whole_completed and all(since <= whole[0] for since in joined_at.values())
    enough = expected is None or len(joined_at) >= expected[1] or covered
    complete = enough and all(end is False for end in ends)
    return PhaseVerdict(complete, ends.count(False), ends.count(True))


@no_deadline
@given(retold(), st.lists(st.integers(0, 24), max_size=6))
def test_order_repetition_and_grouping_of_facts_change_nothing(
    tellings: tuple[list[Fact], list[Fact]], at: list[int]
) -> None:
    told, again = tellings
    state = BatchState()
    for group in cut(again, at):
        state.absorb(delta_of(group))
    assert state == delta_of(told)
    assert summarize(state, 7) == summarize(delta_of(told), 7)
    assert [judge(state, phase) for phase in PHASES] == [judge(delta_of(told), phase) for phase in PHASES]


@no_deadline
@given(retold())
def test_absorbing_fact_by_fact_gives_the_state_of_all_facts(tellings: tuple[list[Fact], list[Fact]]) -> None:
    told, again = tellings
    state = BatchState()
    for fact in again:
        state.absorb(delta_of([fact]))
    assert state == delta_of(told)


@no_deadline
@given(states, states, states)
def test_the_join_is_commutative_associative_and_idempotent(a: BatchState, b: BatchState, c: BatchState) -> None:
    assert joined(a, b) == joined(b, a)
    assert joined(joined(a, b), c) == joined(a, joined(b, c))
    assert joined(a, a) == a
    assert joined(a, BatchState()) == joined(BatchState(), a) == a


@no_deadline
@given(states, states)
def test_absorb_returns_exactly_what_changed(before: BatchState, delta: BatchState) -> None:
    state = before.copy()
    changed = state.absorb(delta)
    old, new = registers(before), registers(state)
    assert registers(changed) == {name: value for name, value in new.items() if old.get(name) != value}
    assert new.keys() == old.keys() | registers(delta).keys()
    assert state.absorb(delta).empty
    assert joined(before, changed) == state


@no_deadline
@given(states, states, states)
def test_absorb_leaves_the_delta_alone_and_shares_nothing_with_it(
    state: BatchState, delta: BatchState, later: BatchState
) -> None:
    delta_before = delta.copy()
    changed = state.absorb(delta)
    changed_before = changed.copy()
    copied = state.copy()
    state.absorb(later)
    assert (delta, changed) == (delta_before, changed_before)
    copied_before = copied.copy()
    copied.absorb(later)
    assert copied == state
    assert joined(copied_before, later) == copied


@settings(deadline=None, max_examples=500)
@given(fact_lists)
@example([EssaysRegistered(("a", "b"), 3, 1), EssayPhaseEnded("nlp", "a", Outcome.COMPLETED, 2)])
@example([BatchPhaseEnded("nlp", Outcome.COMPLETED, 2), EssaysRegistered((), 5, 3)])
@example([EssaysRegistered(("a",), 3, 1), BatchPhaseEnded("nlp", Outcome.COMPLETED, 1)])
def test_verdicts_are_those_of_the_design(told: list[Fact]) -> None:
    state = delta_of(told)
    for phase in PHASES:
        verdict = judge(state, phase)
        event(f"complete: {verdict.complete}")
        assert verdict == verdict_by_design(told, phase)


@no_deadline
@given(fact_lists, st.integers(0, 99))
def test_the_summary_says_what_the_state_says(told: list[Fact], version: int) -> None:
    state = delta_of(told)
    summary = summarize(state, version)
    assert summary.version == version
    assert summary.known == len(state.known_since_us)
    assert summary.expected == (state.expected.count if state.expected else None)
    for phase in (*PHASES, "never heard of"):
        assert summary.complete(phase) == verdict_by_design(told, phase).complete
    assert summary.verdicts.keys() == {fact.phase for fact in told if not isinstance(fact, EssaysRegistered)}


@no_deadline
@given(fact_lists, essays, phases)
def test_a_newest_failure_of_one_essay_makes_its_phase_incomplete(told: list[Fact], essay: str, phase: str) -> None:
    latest = max((fact.at_us for fact in told), default=0)
    state = delta_of([*told, EssayPhaseEnded(phase, essay, Outcome.FAILED, latest)])
    own = state.essay_marks[phase][essay]
    assert own.outcome is Outcome.FAILED
    assert not judge(state, phase).complete


def test_the_designs_own_examples_hold() -> None:
    thirty = tuple(f"essay-{number}" for number in range(30))
    registered = EssaysRegistered(thirty, 30, 1)
    done: list[Fact] = [EssayPhaseEnded("spellcheck", essay, Outcome.COMPLETED, 2) for essay in thirty]

    def complete(*told: Fact) -> bool:
        return judge(delta_of(told), "spellcheck").complete

    assert not complete(registered, done[0])
    assert not complete(registered, *done[:29])
    assert complete(registered, *done)
    assert not complete(registered, *done, EssayPhaseEnded("spellcheck", thirty[3], Outcome.FAILED, 3))
    assert complete(done[0])  # never registered: the essays seen count
    assert complete(BatchPhaseEnded("spellcheck", Outcome.COMPLETED, 1))
    assert not complete(registered)
    assert not complete(BatchPhaseEnded("spellcheck", Outcome.COMPLETED, 0), registered)  # they joined later
    assert complete(registered, BatchPhaseEnded("spellcheck", Outcome.COMPLETED, 1))


def test_the_newest_mark_wins_in_any_order() -> None:
    older = EssayPhaseEnded("nlp", "a", Outcome.FAILED, 1)
    newer = EssayPhaseEnded("nlp", "a", Outcome.COMPLETED, 2)
    for told in ([older, newer], [newer, older]):
        assert delta_of(told).essay_marks["nlp"]["a"].outcome is Outcome.COMPLETED


def test_of_two_marks_at_one_instant_failed_wins() -> None:
    completed, failed = (EssayPhaseEnded("nlp", "a", outcome, 1) for outcome in (Outcome.COMPLETED, Outcome.FAILED))
    for told in ([completed, failed], [failed, completed]):
        assert delta_of(told).essay_marks["nlp"]["a"].outcome is Outcome.FAILED


def test_a_phase_is_not_complete_while_expected_essays_are_missing() -> None:
    done: list[Fact] = [EssayPhaseEnded("nlp", essay, Outcome.COMPLETED, 2) for essay in ("a", "b")]
    assert not judge(delta_of([EssaysRegistered(("a", "b"), 3, 1), *done]), "nlp").complete
    assert judge(delta_of([EssaysRegistered(("a", "b"), 2, 1), *done]), "nlp").complete
