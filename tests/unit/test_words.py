"""The code uses the field's terms."""

from __future__ import annotations

import pytest

from tests.words import KEPT, findings, identifiers, replaced_in


def test_no_name_uses_a_word_that_was_replaced() -> None:
    assert findings() == {}


def test_at_most_ten_names_stay_and_each_has_its_reason() -> None:
    assert len(KEPT) <= 10
    assert all(KEPT.values())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("say_goodbye", ["goodbye"]),
        ("PastReader", ["past"]),
        ("_LETTERS_PER_APPEND", ["letters"]),
        ("UnreadableDeadLetter", []),
        ("dead_letters_waiting", []),
        ("settled", []),
    ],
)
def test_a_replaced_word_is_found_in_any_kind_of_name(name: str, words: list[str]) -> None:
    assert replaced_in(name) == words


def test_all_of_the_source_is_looked_at() -> None:
    assert len(set(identifiers().values())) > 200
