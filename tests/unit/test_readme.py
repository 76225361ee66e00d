"""The README and the documents agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bcs.config.secrets import secret_variables
from bcs.config.settings import Settings
from bcs.observability.telemetry import Telemetry
from bcs.wire import topics
from tests.refusals.table import table
from tests.support.documented import anchors
from tests.support.law_stories import STORIES, Story, stories_table
from tests.support.settings_table import settings_table

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_the_table_of_settings_is_the_settings() -> None:
    assert settings_table() in (ROOT / "docs/settings.md").read_text()


def test_the_table_of_stories_is_what_the_law_answers() -> None:
    assert stories_table() in (ROOT / "docs/completion.md").read_text()


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.told[:60])
def test_each_story_ends_as_it_is_told(story: Story) -> None:
    assert story.decision().runs is not story.pruned


TESTS = r"`(tests/[\w/]+\.py)(?:::(\w+))?`"
VARIABLES = r"\bBCS_[A-Z_]+\b"
METRICS = r"\bbcs_[a-z_]+\b"
PATHS = r"`(?:bcs/)?((?:[a-z_]+/)+[a-z_]+\.(?:py|yml|yaml)|[a-z_]+/(?:[a-z_]+/)*)`"
LINKS = r"\]\(([^)#:]+)(?:#[^)]*)?\)"


@pytest.mark.parametrize(("pattern", "least"), [(TESTS, 50), (VARIABLES, 50), (LINKS, 10), (METRICS, 20), (PATHS, 50)])
def test_what_is_looked_for_is_found(pattern: str, least: int) -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    assert len(re.findall(pattern, text)) >= least


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    for path, name in re.findall(TESTS, document.read_text()):
        assert (ROOT / path).is_file(), path
        if name:
            assert re.search(rf"def {name}\(", (ROOT / path).read_text()), f"{path}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_that_a_document_names_exists(document: Path) -> None:
    known = {f"BCS_{name.upper()}" for name in Settings.model_fields}
    known |= {f"{variable}_FILE" for variable in secret_variables(Settings)}
    named = {name for name in re.findall(VARIABLES, document.read_text()) if not name.startswith("BCS_TEST_")}
    assert named <= known | {"BCS_"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(LINKS, document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_that_a_document_names_exists(document: Path) -> None:
    for path in re.findall(PATHS, document.read_text()):
        assert any((folder / path).exists() for folder in (ROOT, ROOT / "bcs", ROOT / "bcs/actors")), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_heading_leads_to_one(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text()):
        assert anchor in anchors(document.parent / target if target else document), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_metric_that_a_document_names_exists(document: Path) -> None:
    known = {sample.name for family in Telemetry().registry.collect() for sample in family.samples}
    known |= {f"{family.name}{end}" for family in Telemetry().registry.collect() for end in ("", "_total", "_bucket")}
    assert set(re.findall(METRICS, document.read_text())) <= known


def test_operations_name_every_topic_in_the_table_of_topics() -> None:
    rows = re.findall(
        r"^\| `(huleedu\.\S+)` \|(?: [^|]+ \|){5}$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE
    )
    assert sorted(rows) == sorted([*topics.CONSUMED, *topics.PUBLISHED])


def test_the_table_of_refusals_is_the_one_that_is_played() -> None:
    assert table() in (ROOT / "docs/refusals.md").read_text()
    assert table(short=True) in (ROOT / "docs/operations.md").read_text()
