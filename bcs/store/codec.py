"""How state and summary are written in the store.

What a batch is in all is text: its version, the number of essays that are expected, marks that stand for all of them.
What is known of one essay is a record of fixed width, since there are thousands of those: when it joined, in eight
bytes, and for each phase how it ended, a letter, and when, in eight bytes again. Which phase stands where is said by
the batch (`slot:<phase>`). Numbers begin with their highest byte, so that they compare as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from struct import Struct
from typing import Any
from urllib.parse import quote

from pydantic_core import from_json

from bcs.domain.errors import StoreCorrupted
from bcs.domain.facts import Outcome
from bcs.domain.state import BatchState, Expected, Mark
from bcs.domain.verdicts import BatchSummary, PhaseVerdict

EXPECTED_FIELD = "expected"
VERSION_FIELD = "version"
WHOLE_FIELD = "whole"
"""The version at which nothing that the permanent record has of the batch was missing here, and the mark of that."""
BATCH_MARK_PREFIX = "mark:"
SLOT_PREFIX = "slot:"

_JOINED_BYTES = 8
_MARK_BYTES = 9
_NEVER_JOINED = 2**64 - 1
_NO_MARK = (b"-", 0)
_OUTCOMES = {outcome.encode(): outcome for outcome in Outcome}
_MARK = Struct(">cQ")


class BatchKeys:
    """The keys of one batch. Its percent-encoded id is their hash tag, so they share a slot on a Cluster.

    Encoding everything but letters, digits and `_.-~` keeps any two batches apart, whatever their ids contain.
    """

    __slots__ = ("essays", "meta", "stem", "summary")

    def __init__(self, prefix: str, batch_id: str) -> None:
        self.stem = f"{prefix}{{{quote(batch_id, safe='')}}}"
        # Other names than an earlier layout had, whose keys must not be taken for these.
        self.summary = f"{self.stem}:verdicts"
        self.meta = f"{self.stem}:batch"
        self.essays = f"{self.stem}:essays"

    @property
    def all(self) -> tuple[str, str, str]:
        """In the order in which the merge script takes them."""
        return self.summary, self.meta, self.essays


def encode_mark(mark: Mark) -> str:
    """A mark of a whole batch as `c1732360000123456`: how it ended, and when in microseconds."""
    return f"{mark.outcome}{mark.at_us}"


def encode_expected(expected: Expected) -> str:
    """An expected count as `1732360000123456:30`."""
    return f"{expected.at_us}:{expected.count}"


def encode_joined(since_us: int) -> bytes:
    """The first part of an essay's record."""
    return since_us.to_bytes(_JOINED_BYTES, "big")


def encode_essay_mark(mark: Mark) -> bytes:
    """One of the other parts of an essay's record."""
    return _MARK.pack(mark.outcome.encode(), mark.at_us)


def encode_essay(state: BatchState, essay_id: str, phases: Iterable[str]) -> bytes:
    """What a state knows of one essay.

    :param phases: each in its slot.
    """
    parts: list[bytes | int] = [state.known_since_us.get(essay_id, _NEVER_JOINED)]
    for phase in phases:
        mark = state.essay_marks.get(phase, {}).get(essay_id)
        parts += _NO_MARK if mark is None else (mark.outcome.encode(), mark.at_us)
    return _record(len(parts) // 2).pack(*parts)


def slots_in(meta: Mapping[str, str]) -> list[str]:
    """The phases in a batch's records, each in its slot.

    :raises ValueError: something else wrote there.
    """
    by_slot = {
        int(slot): field.removeprefix(SLOT_PREFIX) for field, slot in meta.items() if field.startswith(SLOT_PREFIX)
    }
    if sorted(by_slot) != list(range(len(by_slot))):
        raise ValueError(f"slots {sorted(by_slot)}")
    return [by_slot[slot] for slot in range(len(by_slot))]


def decode_state(
    keys: BatchKeys, meta: Mapping[str, str], phases: Sequence[str], essays: Sequence[bytes]
) -> BatchState:
    """A state from what the store holds.

    :param phases: each in its slot.
    :param essays: each one's id, and behind it its record.
    :raises StoreCorrupted: something else wrote there.
    """
    try:
        marks: list[dict[str, Mark]] = [{} for _ in phases]
        known_since_us: dict[str, int] = {}
        for raw_id, record in zip(essays[::2], essays[1::2], strict=True):
            essay_id = raw_id.decode()
            slots, rest = divmod(len(record) - _JOINED_BYTES, _MARK_BYTES)
            if rest or not 0 <= slots <= len(phases):
                raise ValueError(f"a record of {len(record)} bytes")
            since_us, *parts = _record(slots).unpack(record)
            if since_us != _NEVER_JOINED:
                known_since_us[essay_id] = since_us
            for of_phase, outcome, at_us in zip(marks, parts[::2], parts[1::2], strict=False):
                if outcome != b"-":
                    of_phase[essay_id] = Mark(_OUTCOMES[outcome], at_us)
        expected = meta.get(EXPECTED_FIELD)
        return BatchState(
            {phase: of_phase for phase, of_phase in zip(phases, marks, strict=True) if of_phase},
            {
                field.removeprefix(BATCH_MARK_PREFIX): _batch_mark(text)
                for field, text in meta.items()
                if field.startswith(BATCH_MARK_PREFIX)
            },
            known_since_us,
            _expected(expected) if expected else None,
        )
    except (ValueError, KeyError) as error:
        raise StoreCorrupted(keys.stem, str(error)) from None


def encode_summary(summary: BatchSummary, mark: str | None = None) -> str:
    """A summary as one small string.

    :param mark: of `Recall`, that nothing is missing in it.
    """
    return json.dumps(
        {
            "v": summary.version,
            **({"whole": mark} if mark is not None else {}),
            "known": summary.known,
            "expected": summary.expected,
            "phases": {
                phase: [int(verdict.complete), verdict.completed, verdict.failed]
                for phase, verdict in summary.verdicts.items()
            },
        },
        separators=(",", ":"),
    )


def decode_summary(key: str, text: bytes) -> tuple[BatchSummary, str | None]:
    """A summary from its string, and the mark that nothing is missing in it, if it has one.

    :raises StoreCorrupted: something else wrote there.
    """
    try:
        document = from_json(text)
        verdicts: dict[str, PhaseVerdict] = {}
        for phase, (complete, completed, failed) in document["phases"].items():
            _require_whole(complete, completed, failed)
            verdicts[phase] = PhaseVerdict(complete == 1, completed, failed)
        version, known, expected = document["v"], document["known"], document["expected"]
        _require_whole(version, known, 0 if expected is None else expected)
        return BatchSummary(version, known, expected, verdicts), document.get("whole")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupted(key, f"not a summary: {error}") from None


@cache
def _record(slots: int) -> Struct:
    return Struct(">Q" + "cQ" * slots)


def _require_whole(*values: Any) -> None:
    if not all(type(value) is int for value in values):
        raise TypeError("not a whole number")


def _batch_mark(text: str) -> Mark:
    return Mark(Outcome(text[:1]), int(text[1:]))


def _expected(text: str) -> Expected:
    at_us, _, count = text.partition(":")
    return Expected(int(count), int(at_us))
