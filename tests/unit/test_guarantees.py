"""The sentences above the tests of the supervision library, and the page that is made of them."""

from __future__ import annotations

from tests.support.guarantees import PAGE, TESTS, TOPICS, guarantees, read_guarantees, supervision_page


def test_the_page_has_the_sentences_of_the_tests() -> None:
    assert PAGE.read_text() == supervision_page(), "run `python -m tests.support.guarantees`"


def test_no_sentence_is_missed() -> None:
    found = list(read_guarantees())
    assert len(found) == sum(file.read_text().count("@guarantees(") for file in TESTS.glob("test_*.py"))
    assert len({(each.topic, each.sentence) for each in found}) > 150
    assert {each.topic for each in found} == set(TOPICS)


def test_a_sentence_is_a_marker_for_pytest() -> None:
    mark = guarantees("A sentence", topic="Asks").mark
    assert (mark.name, mark.args, mark.kwargs) == ("guarantees", ("A sentence",), {"topic": "Asks"})
