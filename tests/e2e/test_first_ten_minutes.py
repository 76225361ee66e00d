"""A new user gets from the story to a replayed dead letter in minutes, with commands that help and README name."""

from __future__ import annotations

import re
import sys
import time

import pytest

from tests.e2e.first_ten_minutes import DOCUMENT, LIMIT_SECONDS, STEPS, play

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="types with bash")


@pytest.mark.release
def test_the_first_ten_minutes_go_as_they_are_told() -> None:
    begun = time.monotonic()
    document = play()
    assert time.monotonic() - begun < LIMIT_SECONDS
    assert headings(document) == headings(DOCUMENT.read_text())


def test_the_document_has_every_step() -> None:
    assert headings(DOCUMENT.read_text())[1:-1] == [step.title for step in STEPS]


def headings(document: str) -> list[str]:
    return re.findall(r"^## (.*)$", document, re.MULTILINE)
