"""A summary that is counted from columns is the summary that `Evaluation` gives."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from hypothesis import event, given, settings
from hypothesis import strategies as st

from bcs.domain.columns import mark_number, mark_of, outcome_of, tallying
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
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.progress import summarize
from bcs.domain.slices import at_once
from bcs.domain.state import BatchState, Mark, delta_of
from bcs.domain.times import LATEST_US
from bcs.storage.redis.batch_codec import BatchKeys, StoredBatch, building_state, decoding_batch
from bcs.storage.redis.batch_commands import writing
from tests.support.tiers import examples

PHASES = ("spellcheck", "nlp", "ai_feedback")
ESSAYS = ["a", "b", "c", "00000001-6f2c-4d3a-9b1e-5c7d8e9f0a1b"]
times, phases, essays = st.integers(0, 9), st.sampled_from(PHASES), st.sampled_from(ESSAYS)
lists = st.lists(essays, max_size=4, unique=True).map(tuple)
USUAL = (
    st.builds(EssayPhaseEnded, phases, essays, st.sampled_from(Outcome), times),
    st.builds(EssaysRegistered, lists, st.integers(0, 5), times),
    st.builds(
        PhaseOutcome,
        phases,
        st.just("completed_with_failures"),
        completed=lists,
        failed=lists,
        speaks_for_all=st.just(False),
        at_us=times,
        repeat_key=st.sampled_from(["", "k", "l"]),
    ),
)
UNUSUAL = (
    st.builds(PhaseReported, phases, st.sampled_from(Outcome), times),
    st.builds(PhaseInvalidated, phases, st.none() | essays, times),
    st.builds(RecordedUnder, phases, st.sampled_from(["in use", "old"]), times),
    st.builds(
        PhaseOutcome,
        phases,
        st.just("completed_successfully"),
        completed=st.just(()),
        failed=st.just(()),
        speaks_for_all=st.just(True),
        at_us=st.sampled_from([5, 9, 10]),
        repeat_key=st.sampled_from(["", "k", "l"]),
    ),
)
laws = st.builds(
    lambda policies, required, kept: CompletionLaw(
        {"spellcheck": (), "nlp": ("spellcheck",), "ai_feedback": ("nlp",)},
        dict(zip(PHASES, policies, strict=True)),
        require_registration=required,
        definitions=dict.fromkeys(kept, "in use"),
    ),
    st.lists(st.sampled_from(CompleteWhen), min_size=3, max_size=3),
    st.booleans(),
    st.sampled_from([(), ("nlp",), tuple(PHASES)]),
)


def stored(state: BatchState) -> StoredBatch:
    """The batch as it is read from Redis."""
    keys, nothing = BatchKeys("", "b"), StoredBatch(registers=BatchState())
    fields: list[bytes] = []
    for _, _, *words in at_once(writing(keys, nothing, state, state, 7, None)):
        fields += (word if isinstance(word, bytes) else str(word).encode() for word in words)
    return at_once(decoding_batch(fields, "redis"))


@settings(max_examples=examples(200))
@given(
    usual=st.lists(st.one_of(*USUAL), max_size=8),
    unusual=st.lists(st.one_of(*UNUSUAL), max_size=2),
    unseen=st.none() | essays,
    law=laws,
)
def test_a_counted_summary_is_the_evaluated_one(
    usual: list[Fact], unusual: list[Fact], unseen: str | None, law: CompletionLaw
) -> None:
    state = delta_of([*usual, *unusual])
    if unseen is not None:
        # As in a part of a state: its marks come in another part than the time at which the essay was first seen.
        state.first_seen_us.pop(unseen, None)
    batch = stored(state)
    counted = at_once(tallying(batch.registers, batch.columns, law, 7))
    event("evaluated" if counted is None else "counted")
    if counted is not None:
        assert counted == summarize(state, law, 7)
    assert at_once(building_state(batch)) == state


def test_usual_facts_are_counted_and_not_evaluated() -> None:
    law = CompletionLaw({"spellcheck": (), "nlp": ("spellcheck",)})
    registration: Fact = EssaysRegistered(("a", "b"), 2, 1)
    told: list[Fact]
    for told in (
        [registration],
        [registration, EssayPhaseEnded("spellcheck", "a", Outcome.COMPLETED, 5)],
        [
            registration,
            EssayPhaseEnded("spellcheck", "a", Outcome.FAILED, 5),
            PhaseOutcome("nlp", "s", completed=("b",), failed=(), speaks_for_all=False, at_us=6, repeat_key="k"),
        ],
    ):
        batch = stored(delta_of(told))
        assert at_once(tallying(batch.registers, batch.columns, law, 1)) == summarize(delta_of(told), law, 1)


def test_facts_of_another_definition_are_counted_as_evaluated() -> None:
    law = CompletionLaw({"nlp": ()}, definitions={"nlp": "in use"})
    older: list[Fact] = [EssayPhaseEnded("nlp", essay, Outcome.COMPLETED, 5) for essay in "ab"]
    later = PhaseOutcome("nlp", "s", completed=("a",), failed=(), speaks_for_all=False, at_us=6, repeat_key="k")
    alone = replace(later, completed=("a", "b"))
    for told, definition, since in (
        (older, "in use", None),
        (older, "old", 0),
        ([*older, later], "old", 1),
        ([*older, alone], "old", None),
        ([alone], "old", None),
    ):
        state = delta_of([*told, RecordedUnder("nlp", definition, 5)])
        batch = stored(state)
        summary = at_once(tallying(batch.registers, batch.columns, law, 1))
        assert summary == summarize(state, law, 1)
        newer = summary.progress["nlp"].older
        assert (newer and newer.completed_since) == since


def test_the_winning_mark_has_the_greater_number() -> None:
    marks = [Mark(outcome, at_us) for outcome, at_us in product(Outcome, (0, 1, 2, LATEST_US - 1, LATEST_US))]
    for mark, other in product(marks, marks):
        number, its = (mark_number(each.outcome, each.at_us) for each in (mark, other))
        assert (number > its) is (mark.supersedes(other) and mark != other)
        assert 0 < number < 2**63
        assert mark_of(number) == mark
        assert outcome_of(number) is mark.outcome
