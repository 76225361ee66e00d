"""An encoded entry is decoded to the same entry, with any texts."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import to_json

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
    RecordedUnder,
    repeat_key_of,
)
from bcs.domain.history import (
    REPORTED,
    FactsRecorded,
    HistoryEntry,
    PhaseDecided,
    PipelineResolved,
    Position,
    consumed_entry_id,
    weight,
)
from bcs.domain.resolve_options import PLAIN, Force, ResolveOptions
from bcs.storage.history_codec import decode_entry, encode_detail, encode_entry
from bcs.storage.postgres.rows import from_text, to_text

texts = st.text(st.characters(codec="utf-8"), max_size=20)
times = st.integers(0, 2**62)
outcomes = st.sampled_from(Outcome)
lists = st.lists(texts, max_size=3).map(tuple)
facts: st.SearchStrategy[Fact] = st.one_of(
    st.builds(EssayPhaseEnded, texts, texts, outcomes, times),
    st.builds(PhaseReported, texts, outcomes, times),
    st.builds(PhaseInvalidated, texts, st.none() | texts, times),
    st.builds(
        PhaseOutcome,
        texts,
        texts,
        completed=lists,
        failed=lists,
        speaks_for_all=st.booleans(),
        at_us=times,
        repeat_key=texts,
    ),
    st.builds(EssaysRegistered, lists, st.integers(0, 10**30), times),
)
positions = st.builds(Position, texts, st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1))
recorded = st.builds(
    FactsRecorded,
    st.uuids(),
    texts,
    times,
    # The definitions come last, as in every entry that BCS makes.
    facts=st.builds(
        lambda some, under: (*some, *under),
        st.lists(facts, max_size=3),
        st.lists(st.builds(RecordedUnder, texts, texts, times), max_size=2),
    ),
    # Also those that the release before wrote in another way.
    event_type=st.sampled_from(["ELSBatchPhaseOutcomeV1", "CJAssessmentCompletedV1", REPORTED]) | texts,
    correlation_id=st.none() | texts,
    event_id=st.none() | texts,
    position=st.none() | positions,
    asked_by=st.none() | texts,
    reason=st.none() | texts,
)
given_options = st.builds(
    ResolveOptions,
    force=st.sampled_from(Force) | lists,
    until=st.none() | st.text(min_size=1, max_size=3),
    only=lists,
    exclude=lists,
).map(lambda options: PLAIN if options == PLAIN else options)
resolved = st.builds(
    PipelineResolved,
    st.uuids(),
    texts,
    times,
    correlation_id=texts,
    asked_by=texts,
    pipeline=texts,
    decisions=st.lists(st.builds(PhaseDecided, texts, st.booleans(), texts, texts), max_size=3).map(tuple),
    version=st.integers(0, 2**53),
    source=texts,
    options=given_options,
)


@given(entry=st.one_of(recorded, resolved))
def test_an_entry_is_read_as_it_was_written(entry: HistoryEntry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


@given(text=texts | st.text("\0\\0", max_size=8))
@example(text="\\\0")
@example(text="\\0")
def test_a_text_is_read_as_it_was_written_and_has_no_nul_on_the_way(text: str) -> None:
    assert "\0" not in to_text(text)
    assert from_text(to_text(text)) == text


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"{}", b"[true,1,2,3,4,5,6,7]", b'[false,"x","b",1,null,null,[1],"{}"]']
)
def test_what_is_no_entry_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):
        decode_entry(raw)


def test_a_message_has_an_entry_of_its_own_wherever_it_lies() -> None:
    ids = {
        consumed_entry_id(topic, partition, offset, time)
        for topic in ("a", "a1")
        for partition in (1, 11)
        for offset in (1, 11)
        for time in (1, 11)
    }
    assert len(ids) == 16
    assert consumed_entry_id("a", 1, 1, 1) in ids


ELS, CJ, SPELLCHECK = "ELSBatchPhaseOutcomeV1", "CJAssessmentCompletedV1", "SpellcheckPhaseCompletedV1"
C, F = Outcome.COMPLETED, Outcome.FAILED


def by_its_lists(status: str, completed: tuple[str, ...], failed: tuple[str, ...], *, all_of: bool = False) -> Fact:
    key = repeat_key_of("nlp", "c-1", status, completed, failed)
    return PhaseOutcome(
        "nlp", status, completed=completed, failed=failed, speaks_for_all=all_of, at_us=7, repeat_key=key
    )


OLD: dict[str, tuple[str, list[list[object]], tuple[Fact, ...]]] = {
    "one essay": (SPELLCHECK, [["essay", "spellcheck", "e\0", "f", 7]], (EssayPhaseEnded("spellcheck", "e\0", F, 7),)),
    "a roster": ("BatchEssaysRegistered", [["roster", ["e", "f"], 3, 7]], (EssaysRegistered(("e", "f"), 3, 7),)),
    "a report": (REPORTED, [["batch", "nlp", "c", 7]], (PhaseReported("nlp", C, 7),)),
    "ELS: all that were named succeeded": (
        ELS,
        [["essay", "nlp", "b", "c", 7], ["essay", "nlp", "a", "c", 7], ["batch", "nlp", "c", 7]],
        (by_its_lists("completed_successfully", ("b", "a"), ()),),
    ),
    "ELS: some failed": (
        ELS,
        [["essay", "nlp", "a", "c", 7], ["essay", "nlp", "b", "f", 7]],
        (by_its_lists("completed_with_failures", ("a",), ("b",)),),
    ),
    "ELS: all failed": (ELS, [["essay", "nlp", "b", "f", 7]], (by_its_lists("failed_critically", (), ("b",)),)),
    "ELS: nobody is named": (
        ELS,
        [["batch", "nlp", "c", 7]],
        (by_its_lists("completed_successfully", (), (), all_of=True),),
    ),
    "ELS: nobody is named, and all failed": (
        ELS,
        [["batch", "nlp", "f", 7]],
        (by_its_lists("failed_critically", (), ()),),
    ),
    "CJ: it took itself for complete": (
        CJ,
        [["essay", "cj_assessment", "a", "c", 7], ["batch", "cj_assessment", "c", 7]],
        (
            PhaseOutcome(
                "cj_assessment", "completed_successfully", completed=("a",), failed=(), speaks_for_all=False, at_us=7
            ),
        ),
    ),
    "CJ: nobody is named": (
        CJ,
        [["batch", "cj_assessment", "f", 7]],
        (PhaseOutcome("cj_assessment", "failed_critically", completed=(), failed=(), speaks_for_all=False, at_us=7),),
    ),
    "no fact": (ELS, [], ()),
}


def old_entry(event_type: str, facts: list[list[object]]) -> bytes:
    detail = to_json({"event_type": event_type, "facts": facts}).decode()
    return to_json([False, str(UUID(int=1)), "batch", 9, "c-1", None, ["topic", 1, 2], detail])


@pytest.mark.parametrize("said", OLD)
def test_an_entry_of_the_release_before_is_read_as_a_whole(said: str) -> None:
    event_type, written, facts = OLD[said]
    entry = decode_entry(old_entry(event_type, written))
    assert entry == FactsRecorded(
        UUID(int=1),
        "batch",
        9,
        facts=facts,
        event_type=event_type,
        correlation_id="c-1",
        event_id=None,
        position=Position("topic", 1, 2),
    )
    assert decode_entry(encode_entry(entry)) == entry


@pytest.mark.parametrize(
    ("event_type", "fact"),
    [
        (SPELLCHECK, ["batch", "spellcheck", "c", 7]),
        (ELS, ["essay", "nlp", "a", "x", 7]),
        (ELS, ["essay"]),
        (ELS, "essay"),
        (CJ, ["batch", "cj_assessment", "c", 7, 8]),
        (REPORTED, ["nothing", 1]),
    ],
)
def test_what_the_release_before_did_not_write_is_a_value_error(event_type: str, fact: list[object]) -> None:
    with pytest.raises(ValueError):
        decode_entry(old_entry(event_type, [fact]))


def test_the_release_before_finds_only_facts_that_it_knows() -> None:
    """It refuses an entry with a fact of another kind, and ignores further members of the entry."""
    facts = (EssayPhaseEnded("nlp", "e", Outcome.COMPLETED, 1), RecordedUnder("nlp", "definition", 1))
    entry = FactsRecorded(UUID(int=1), "b", 1, facts=facts, event_type="t")
    assert json.loads(encode_detail(entry))["facts"] == [["essay", "nlp", "e", "c", 1]]
    assert decode_entry(encode_entry(entry)) == entry


def test_a_list_weighs_what_it_holds() -> None:
    facts = (
        PhaseOutcome("nlp", "s", completed=("a", "b"), failed=("c",), speaks_for_all=False, at_us=1),
        EssaysRegistered(("a",), 1, 1),
    )
    entry = FactsRecorded(UUID(int=1), "b", 1, facts=facts, event_type="t")
    assert weight(entry) == 6


def test_a_long_text_weighs_as_much_as_many_facts() -> None:
    long = "x" * 102_400
    usual = FactsRecorded(
        UUID(int=1), "b", 1, facts=(EssayPhaseEnded("nlp", "e", Outcome.COMPLETED, 1),), event_type="t"
    )
    assert weight(usual) == 1
    assert weight(replace(usual, correlation_id=long)) == 101
    assert weight(replace(usual, event_id=long)) == 101
    assert weight(replace(usual, facts=(EssaysRegistered((long, "e"), 1, 1),))) == 103
    assert weight(replace(usual, facts=(EssayPhaseEnded("nlp", long, Outcome.COMPLETED, 1),))) == 101
    decisions = (PhaseDecided("nlp", True, "r", long),)
    assert (
        weight(
            PipelineResolved(
                UUID(int=1),
                "b",
                1,
                correlation_id="c",
                asked_by=long,
                pipeline="p",
                decisions=decisions,
                version=1,
                source="redis",
            )
        )
        == 201
    )


def test_the_migration_gives_an_outcome_the_key_that_the_service_gives_it() -> None:
    migration = import_module("bcs.storage.postgres.migrations.versions.v0002_completion_law")
    for correlation_id in (None, "", "c\0"):
        for status in ("a", "b"):
            for names in ((), ("b", "a"), ("b", "\0", "\1", "a\\0", "b"), ("ä", "\ud800")):
                for arguments in ((names, ()), ((), names), (names, names[:1])):
                    asked = ("nlp", correlation_id, status, *arguments)
                    assert migration.repeat_key(*asked) == repeat_key_of(*asked)
