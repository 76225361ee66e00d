"""The stored summary of a batch: a small JSON text."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json

from bcs.domain.progress import BatchSummary, OlderDefinition, PhaseProgress
from bcs.errors import StoreCorrupted

_USUAL_PROGRESS = (None, 0, 0, 0)


def encode_summary(summary: BatchSummary) -> str:
    """A summary as a small JSON text."""
    return json.dumps(
        {
            "v": summary.version,
            "known": summary.known,
            "expected": summary.expected,
            "phases": {phase: _encode_progress(progress) for phase, progress in summary.progress.items()},
        },
        separators=(",", ":"),
    )


def decode_summary(key: str, text: bytes) -> BatchSummary:
    """A summary from its text.

    :raises StoreCorrupted: BCS did not write this text.
    """
    try:
        document = from_json(text)
        progress = {phase: _decode_progress(*numbers) for phase, numbers in document["phases"].items()}
        version, known, expected = document["v"], document["known"], document["expected"]
        _require_integers(version, known, 0 if expected is None else expected)
        return BatchSummary(version, known, expected, progress)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupted(key, f"not a summary: {error}") from None


def _encode_progress(progress: PhaseProgress) -> list[int | str | None]:
    always = [int(progress.complete), progress.completed, progress.failed]
    further: list[int | None] = [
        progress.outcome_at_us,
        progress.failed_before,
        progress.left_out,
        int(progress.covered),
    ]
    if progress.older is not None:
        older = progress.older
        return [*always, *further, older.definition, older.at_us, older.completed_since]
    # Usual values at the end are left out, to save space.
    while further and further[-1] == _USUAL_PROGRESS[len(further) - 1]:
        further.pop()
    return [*always, *further]


def _decode_progress(
    complete: int,
    completed: int,
    failed: int,
    outcome_at_us: int | None = None,
    failed_before: int = 0,
    left_out: int = 0,
    covered: int = 0,
    definition: str | None = None,
    definition_at_us: int = 0,
    completed_since: int = 0,
) -> PhaseProgress:
    _require_integers(complete, completed, failed, failed_before, left_out, covered, definition_at_us, completed_since)
    if not isinstance(definition, str | None):
        raise TypeError("not a definition")
    _require_integers(0 if outcome_at_us is None else outcome_at_us)
    return PhaseProgress(
        complete == 1,
        completed,
        failed,
        failed_before=failed_before,
        left_out=left_out,
        covered=covered == 1,
        outcome_at_us=outcome_at_us,
        older=None if definition is None else OlderDefinition(definition, definition_at_us, completed_since),
    )


def _require_integers(*values: Any) -> None:
    if not all(type(value) is int for value in values):
        raise TypeError("not a whole number")
