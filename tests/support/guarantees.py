"""What a test guarantees, as a sentence above the test, and the page that lists these sentences.

.venv/bin/python -m tests.support.guarantees  # writes docs/reference/supervision.md
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests/supervision"
PAGE = ROOT / "docs/reference/supervision.md"

# The sections of the page, in their order.
Topic = Literal[
    "Mailboxes",
    "Unacked envelopes and redelivery",
    "Giving up after N deliveries",
    "Asks",
    "Restart kinds",
    "Strategies",
    "Start and stop",
    "Readiness",
    "Shutdown budgets",
    "Restart intensity and escalation",
    "Back-off",
    "Dynamic supervisors",
    "Nested trees",
    "Kill by path",
    "Watchdog and unresponsive attempts",
    "Unexpected cancellation",
    "SystemExit",
    "Snapshot",
    "Observer",
]
TOPICS: tuple[Topic, ...] = get_args(Topic)

_HEAD = """\
# What `bcs.supervision` guarantees

Each row is a sentence that stands above its tests as `@guarantees("…", topic="…")`. After a change there,
`python -m tests.support.guarantees` writes this page again. The concepts are in [actors](../supervision/actors.md),
[supervisors](../supervision/supervisors.md) and [failure](../supervision/failure.md).

The tests run on asyncio, uvloop and trio. On trio they use a clock that jumps to the next deadline when all tasks wait.
Only the tests on that clock check exact times (`dynamic_time`, `time`, `time_to_stop`). The tests of unexpected
cancellation run on asyncio and uvloop, the tests of SystemExit on asyncio and trio.
"""


def guarantees(sentence: str, *, topic: Topic) -> pytest.MarkDecorator:
    """Mark a test with a sentence that would be false if the test failed.

    Several tests may have the same sentence, and a test may have several sentences.

    :param sentence: one line of Markdown, for a user of the library
    :param topic: the section of the page
    """
    return pytest.mark.guarantees(sentence, topic=topic)


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A sentence above a test.

    :param test: path and name, as pytest takes them
    """

    topic: str
    sentence: str
    test: str


def read_guarantees(folder: Path = TESTS) -> Iterator[Guarantee]:
    """All sentences of a folder's tests, by file and line. The tests are parsed, not imported."""
    for file in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "guarantees":
                        topic = next(word.value for word in decorator.keywords if word.arg == "topic")
                        test = f"{file.relative_to(ROOT)}::{node.name}"
                        yield Guarantee(ast.literal_eval(topic), ast.literal_eval(decorator.args[0]), test)


def supervision_page() -> str:
    """The page, in Markdown."""
    rows: dict[str, dict[str, list[str]]] = {topic: {} for topic in TOPICS}
    for each in read_guarantees():
        rows[each.topic].setdefault(each.sentence, []).append(f"`{each.test}`")
    parts = [_HEAD]
    for topic, sentences in rows.items():
        table = [f"| {sentence} | {', '.join(tests)} |" for sentence, tests in sentences.items()]
        parts.append("\n".join([f"## {topic}", "", "| guarantee | tests |", "|---|---|", *table, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(supervision_page())
