"""What is written of an entry is what is read of it, whatever its texts are."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bcs.domain.facts import BatchPhaseEnded, EssayPhaseEnded, EssaysRegistered, Outcome
from bcs.domain.history import FactsRecorded, HistoryEntry, PhaseDecided, PipelineResolved, Position, consumed_entry_id
from bcs.record.rows import from_text, to_text
from bcs.store.history_codec import decode_entry, encode_entry

texts = st.text(st.characters(codec="utf-8"), max_size=20)
times = st.integers(0, 2**62)
outcomes = st.sampled_from(Outcome)
facts = st.one_of(
    st.builds(EssayPhaseEnded, texts, texts, outcomes, times),
    st.builds(BatchPhaseEnded, texts, outcomes, times),
    st.builds(EssaysRegistered, st.lists(texts, max_size=3).map(tuple), st.integers(0, 10**30), times),
)
positions = st.builds(Position, texts, st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1))
recorded = st.builds(
    FactsRecorded,
    st.uuids(),
    texts,
    times,
    st.lists(facts, max_size=3).map(tuple),
    texts,
    st.none() | texts,
    st.none() | texts,
    st.none() | positions,
    st.none() | texts,
)
resolved = st.builds(
    PipelineResolved,
    st.uuids(),
    texts,
    times,
    texts,
    texts,
    texts,
    st.lists(st.builds(PhaseDecided, texts, st.booleans(), texts, texts), max_size=3).map(tuple),
    st.integers(0, 2**53),
    texts,
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
