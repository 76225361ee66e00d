"""docs/explaining.md has what the service answers."""

from __future__ import annotations

import re

import pytest

from tests.e2e.explaining import DOCUMENT, cases, masked, play


@pytest.mark.release
def test_each_case_is_answered_as_the_page_says() -> None:
    assert masked(play()) == masked(DOCUMENT.read_text()), "python -m tests.e2e.explaining writes it"


def test_the_page_has_every_case() -> None:
    headings = re.findall(r"^## (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    assert headings[:-1] == [case.title for case in cases()]
    for case in cases():
        assert f"$ bcs {case.command}" in DOCUMENT.read_text()
        assert case.shows in DOCUMENT.read_text()
