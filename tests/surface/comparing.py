"""What of the surface was accepted: one text file for each family, one fact on each line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import unified_diff
from pathlib import Path

Surface = Mapping[str, list[str]]
"""Families by name, each with its facts in order."""

DIRECTORY = Path(__file__).parent / "snapshots"
ACCEPT = "python -m tests.surface --accept"


def accepted(family: str, directory: Path = DIRECTORY) -> list[str]:
    """The facts that were accepted; none where the family is new."""
    file = directory / f"{family}.txt"
    return file.read_text().splitlines() if file.exists() else []


def accept(family: str, facts: Iterable[str], directory: Path = DIRECTORY) -> None:
    """Take these facts for the accepted ones from now on."""
    directory.mkdir(exist_ok=True)
    (directory / f"{family}.txt").write_text("".join(f"{fact}\n" for fact in facts))


def difference(family: str, before: list[str], now: list[str]) -> str:
    """What differs, and how to accept it; empty where nothing does."""
    lines = list(unified_diff(before, now, f"{family}, as accepted", f"{family}, as it is", lineterm="", n=1))
    if not lines:
        return ""
    return "\n".join(["the public surface is another one", *lines, "", f"To accept what is meant: {ACCEPT} {family}"])
