"""How state and summary are written in the store: small, and readable with a Redis command line."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from urllib.parse import quote

from pydantic_core import from_json

from bcs.domain.errors import StoreCorrupted
from bcs.domain.facts import Outcome
from bcs.domain.state import BatchState, Expected, Mark
from bcs.domain.verdicts import BatchSummary, PhaseVerdict

EXPECTED_FIELD = "expected"
VERSION_FIELD = "version"
BATCH_MARK_PREFIX = "mark:"


class BatchKeys:
    """The keys of one batch. Its percent-encoded id is their hash tag, so they share a slot on a Cluster.

    Encoding everything but letters, digits and `_.-~` keeps any two batches apart, whatever their ids contain.
    """

    __slots__ = ("known", "meta", "stem", "summary")

    def __init__(self, prefix: str, batch_id: str) -> None:
        self.stem = f"{prefix}{{{quote(batch_id, safe='')}}}"
        self.summary = f"{self.stem}:summary"
        self.meta = f"{self.stem}:meta"
        self.known = f"{self.stem}:known"

    def marks(self, phase: str) -> str:
        """The key of a phase's essay marks."""
        return f"{self.stem}:marks:{phase}"


def encode_mark(mark: Mark) -> str:
    """A mark as `c1732360000123456`: how it ended, and when in microseconds."""
    return f"{mark.outcome}{mark.at_us}"


def encode_expected(expected: Expected) -> str:
    """An expected count as `1732360000123456:30`."""
    return f"{expected.at_us}:{expected.count}"


def decode_state(
    keys: BatchKeys, meta: Mapping[str, str], known: Mapping[str, str], marks: Mapping[str, Mapping[str, str]]
) -> BatchState:
    """A state from what the store holds.

    :param marks: phase to essay to encoded mark.
    :raises StoreCorrupted: something else wrote there.
    """
    try:
        expected = meta.get(EXPECTED_FIELD)
        return BatchState(
            {
                phase: {essay: _mark(text) for essay, text in fields.items()}
                for phase, fields in marks.items()
                if fields
            },
            {
                field.removeprefix(BATCH_MARK_PREFIX): _mark(text)
                for field, text in meta.items()
                if field.startswith(BATCH_MARK_PREFIX)
            },
            {essay: int(since) for essay, since in known.items()},
            _expected(expected) if expected else None,
        )
    except ValueError as error:
        raise StoreCorrupted(keys.stem, str(error)) from None


def encode_summary(summary: BatchSummary, phases: Collection[str]) -> str:
    """A summary as one small string.

    :param phases: those that the writer knows; of others a summary says nothing, even if there are facts about them.
    """
    return json.dumps(
        {
            "judged": sorted(phases),
            "v": summary.version,
            "known": summary.known,
            "expected": summary.expected,
            "phases": {
                phase: [int(verdict.complete), verdict.completed, verdict.failed]
                for phase, verdict in summary.verdicts.items()
            },
        },
        separators=(",", ":"),
    )


def decode_summary(key: str, text: bytes, phases: frozenset[str]) -> BatchSummary | None:
    """A summary from its string.

    :param phases: those that the reader knows.
    :returns: None when the writer did not know all of them, as during a change of the pipelines.
    :raises StoreCorrupted: something else wrote there.
    """
    try:
        document = from_json(text)
        if not phases.issubset(document["judged"]):
            return None
        verdicts: dict[str, PhaseVerdict] = {}
        for phase, (complete, completed, failed) in document["phases"].items():
            _require_whole(complete, completed, failed)
            verdicts[phase] = PhaseVerdict(complete == 1, completed, failed)
        version, known, expected = document["v"], document["known"], document["expected"]
        _require_whole(version, known, 0 if expected is None else expected)
        return BatchSummary(version, known, expected, verdicts)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupted(key, f"not a summary: {error}") from None


def _require_whole(first: object, second: object, third: object) -> None:
    if not (type(first) is type(second) is type(third) is int):
        raise TypeError("not a whole number")


def _mark(text: str) -> Mark:
    return Mark(Outcome(text[:1]), int(text[1:]))


def _expected(text: str) -> Expected:
    at_us, _, count = text.partition(":")
    return Expected(int(count), int(at_us))
