"""Every page of docs/runbooks has a play, and the play goes as the page says."""

from __future__ import annotations

import sys

import pytest

from tests.e2e.runbooks.page import FOLDER, Runbook, blocks_of, masked, play
from tests.e2e.runbooks.plays import RUNBOOKS
from tests.support.apache_kafka import ApacheKafkaMissing

INDEX = FOLDER / "README.md"
ALERTS = FOLDER / "alerts.md"  # a section for each alert; tests/unit/test_alert_rules.py looks at it


@pytest.mark.release
@pytest.mark.skipif(sys.platform != "linux", reason="types with bash")
@pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda runbook: runbook.name)
def test_a_runbook_goes_as_its_page_says(runbook: Runbook) -> None:
    written = {name: masked(content) for name, content in blocks_of(runbook.path.read_text()).items()}
    try:
        played = play(runbook)
    except ApacheKafkaMissing as missing:
        pytest.skip(f"no Apache Kafka: {missing}")
    seen = {name: masked(content) for name, content in played.items()}
    assert seen == written, f"python -m tests.e2e.runbooks {runbook.name} writes it"


def test_every_page_has_a_play_and_is_in_the_index() -> None:
    pages = {page.stem for page in FOLDER.glob("*.md") if page not in (INDEX, ALERTS)}
    assert pages == {runbook.name for runbook in RUNBOOKS}
    listed = [name for name in pages if f"]({name}.md)" in INDEX.read_text()]
    assert set(listed) == pages


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda runbook: runbook.name)
def test_every_block_of_a_page_was_played(runbook: Runbook) -> None:
    blocks = blocks_of(runbook.path.read_text())
    assert blocks.keys() == set(runbook.blocks)
    assert all(content.strip() for content in blocks.values())
    assert any("\n$ " in f"\n{content}" for content in blocks.values())
