"""Plays runbooks, and writes what was seen into their pages: `python -m tests.e2e.runbooks [NAME …]`."""

from __future__ import annotations

import os
import sys

from tests.e2e.runbooks.page import filled, play
from tests.e2e.runbooks.plays import RUNBOOKS


def main(names: list[str]) -> None:
    """Play the named ones, or all."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as the suite does: else each command compiles BCS again
    for runbook in RUNBOOKS:
        if not names or runbook.name in names:
            blocks = play(runbook)
            if not runbook.path.exists():  # what a new page is written around
                sys.stdout.write("\n".join(f"== {name}\n{content}" for name, content in blocks.items()))
                continue
            runbook.path.write_text(filled(runbook.path.read_text(), blocks))


if __name__ == "__main__":
    main(sys.argv[1:])
