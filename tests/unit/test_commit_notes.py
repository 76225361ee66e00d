"""The note in the metadata of a committed offset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcs.kafka.offsets import CommitNote

DAY_MS = 86_400_000
times = st.integers(0, 2**53)


@given(st.none() | times, st.none() | st.tuples(st.integers(1, 2**40), times))
def test_a_note_comes_back_as_it_was(written_ms: int | None, missed: tuple[int, int] | None) -> None:
    note = CommitNote(written_ms, *(missed or ()))
    assert CommitNote.decode(note.encode()) == note


@pytest.mark.parametrize("text", [None, "", "null", "[]", "7", '"a"', "{", "[" * 9000, "an operator's", '{"missed":1}'])
def test_what_others_wrote_there_is_no_note(text: str | None) -> None:
    assert CommitNote.decode(text).missed_lately(0) == 0
    assert CommitNote.decode(text).written_ms is None


@given(st.text() | st.from_regex(r'\{"(written_ms|missed|missed_at_ms)":[^}]{0,9}\}', fullmatch=True))
def test_any_text_can_be_read(text: str) -> None:
    CommitNote.decode(text).encode()


def test_what_was_missed_within_a_day_adds_up() -> None:
    note = CommitNote(1).with_missed(40, 1000).with_missed(2, 1000 + DAY_MS - 1)
    assert note == CommitNote(1, 42, 1000 + DAY_MS - 1)
    assert note.missed_lately(1000 + 2 * DAY_MS) == 0
    assert note.with_missed(3, 1000 + 2 * DAY_MS).missed == 3
