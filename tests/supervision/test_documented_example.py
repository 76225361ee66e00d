"""The example on the page on actors runs as it stands there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/supervision/actors.md"
EXAMPLE = re.compile(r"<!-- example: begin -->\n```python\n(.*)```\n\n```\n(.*)```\n<!-- example: end -->", re.DOTALL)


def test_the_example_prints_what_the_page_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = EXAMPLE.search(PAGE.read_text())
    assert found
    program = tmp_path / "example.py"
    program.write_text(found[1])
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out == found[2]
