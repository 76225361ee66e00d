"""What is played at a release only is named in the guarantees, and a run at a commit says that it did not play it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUARANTEES = (ROOT / "docs/guarantees.md").read_text()
ROWS = {f"tests/chaos/{path.name}": path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
LEFT_OUT = "tests/chaos/test_stops.py"


@pytest.mark.parametrize("page", ["guarantees", "security"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", (ROOT / f"docs/{page}.md").read_text())
    assert len(named) > len(ROWS)
    path = ""
    for module, name in named:
        path = module or path  # `::test_…` is in the module before it
        text = (ROOT / path).read_text()
        assert not name or re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{path}::{name}"


def test_the_guarantees_name_every_row_and_its_tier() -> None:
    for path, text in ROWS.items():
        if path == f"tests/chaos/{Path(__file__).name}":
            continue
        lines = [line for line in GUARANTEES.splitlines() if f"`{path}`" in line]
        assert lines, path
        if "pytest.mark.release" in text:
            assert any("release" in line for line in lines), path


@pytest.mark.release
def test_a_run_at_a_commit_says_what_it_did_not_play() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "BCS_TEST_CHAOS"}
    command = [sys.executable, "-m", "pytest", LEFT_OUT, "--collect-only", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "tests of the release tier NOT PLAYED: 1" in run.stdout, run.stdout + run.stderr
    assert f"{LEFT_OUT}::" in run.stdout
    assert "BCS_TEST_CHAOS=full" in run.stdout
    assert "1 deselected" in run.stdout
