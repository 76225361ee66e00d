"""Lists the identifiers, log events and metric help texts that still use a word which the house replaced.

    python -m tests.words

`REPLACED` has the words, each with what to say instead. `KEPT` has the names that stay, each with its reason.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from bcs.observability.telemetry import Telemetry
from tests.surface.log_events import facts_of_log_events
from tests.surface.metrics import facts_of_metrics

ROOT = Path(__file__).parents[1] / "bcs"

REPLACED: Mapping[str, str] = {
    "abandoned": "caller_gone",
    "absorb": "merge",
    "adopt": "attach",
    "beat": "heartbeat",
    "blame": "failure cause",
    "bury": "dead-letter",
    "consumption": "PollSession",
    "distrust": "invalidate",
    "exhausted": "on_max_deliveries",
    "goodbye": "close_after_response",
    "guise": "run-as",
    "hand": "unacked, deliver",
    "judge": "evaluate_phase",
    "knowledge": "BatchReader, Announcer",
    "letter": "envelope, dead letter",
    "moment": "parse_timestamp",
    "nowhere": "not_found",
    "obstacle": "BlockingEssay",
    "outweighs": "supersedes",
    "past": "archive, history",
    "patience": "retry",
    "permanent": "archive",
    "projection": "Rebuilder",
    "reach": "hit",
    "recall": "ArchiveBackfill",
    "receipt": "DeliveryToken",
    "rest": "mark_idle",
    "retire": "drain",
    "rouse": "wake",
    "said": "sent, logged",
    "settle": "ack",
    "stray": "unexpected",
    "survey": "DeadLetterIndex",
    "tally": "RebuildStats",
    "tell": "notify",
    "told": "response",
    "trusts": "is_complete",
    "unite": "backfill",
    "verdict": "progress",
    "wedged": "unresponsive",
}
TERM = re.compile(r"(?<![a-z])dead_letters?(?![a-z])")
"""The field's own term for what a letter is not."""

KEPT: Mapping[str, str] = {
    "PERMANENT": "how OTP calls a child that is always restarted",
    "REST_FOR_ONE": "how OTP calls a strategy",
    "_not_letters": "letters of the alphabet",
    "rest": "in a migration, which never changes again",
    "tell": "a method of Python's files",
}


def words_of(identifier: str) -> list[str]:
    """The words in an identifier, in lower case and without a plural's s."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)
    return [part.lower() for part in parts]


def replaced_in(identifier: str) -> list[str]:
    """The replaced words that an identifier uses."""
    text = TERM.sub("", "_".join(words_of(identifier)))
    return [word for word in text.split("_") if word.removesuffix("s") in REPLACED or word in REPLACED]


@cache
def identifiers() -> Mapping[str, Path]:
    """All names in the source, each with the first file that uses it."""
    found: dict[str, Path] = {}
    for file in sorted(ROOT.rglob("*.py")):
        with tokenize.open(file) as source:
            tokens = tokenize.generate_tokens(io.StringIO(source.read()).readline)
            for token in tokens:
                if token.type == tokenize.NAME:
                    found.setdefault(token.string, file)
    return found


def findings() -> dict[str, str]:
    """What still uses a replaced word, and what should stand there."""
    found: dict[str, str] = {}
    for name, file in identifiers().items():
        if name not in KEPT and (words := replaced_in(name)):
            found[name] = f"{_instead_of(words)} ({file.relative_to(ROOT)})"
    for fact in [*facts_of_log_events(ROOT), *facts_of_metrics(Telemetry().registry)]:
        text = re.sub(r"dead[ _-]letters?", "", fact.lower())
        if any(re.search(rf"\b{name}\b", fact) for name in KEPT):
            continue
        if words := [word for word in re.findall(r"[a-z]+", text) if word in REPLACED]:
            found[fact] = _instead_of(words)
    return found


def _instead_of(words: list[str]) -> str:
    return ", ".join(REPLACED.get(word) or REPLACED[word.removesuffix("s")] for word in words)


if __name__ == "__main__":
    listed = findings()
    for name, instead in sorted(listed.items()):
        sys.stdout.write(f"{name}: {instead}\n")
    sys.stdout.write(f"{len(listed)} in all\n")
