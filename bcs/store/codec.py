"""How state and summary are written in the store.

What a batch is in all is text: its version, the number of essays that are expected, and the registers that there are
one of for each phase. What is known of one essay is a record of fixed width, since there are thousands of those: when
it was first seen, in eight bytes, and in each slot how a phase ended, a letter, and when, in eight bytes again. A slot
has the marks of one phase that carry a time of their own, or the list of one outcome that has none: these say 0, and
the time is the outcome's. What stands in which slot is said by the batch (`slot:<phase>`, `slot:<phase> <repeat key>`).
Numbers begin with their highest byte, so that they compare as bytes.
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
from bcs.domain.progress import BatchSummary, PhaseProgress
from bcs.domain.state import ALL_ESSAYS, TIMED, BatchState, Ending, Expected, Mark

LAYOUT = 2
"""Part of every key, so that what another layout wrote is not found."""

EXPECTED_FIELD = "expected"
VERSION_FIELD = "version"
WHOLE_FIELD = "whole"
"""The version at which nothing that the permanent record has of the batch was missing here, and the mark of that."""
REPORT_PREFIX = "report:"
OUTCOME_PREFIX = "outcome:"
INVALID_PREFIX = "invalid:"
SLOT_PREFIX = "slot:"

Slot = tuple[str, str]
"""A phase, and `TIMED` or the repeat key of an outcome."""

_JOINED_BYTES = 8
_MARK_BYTES = 9
_NEVER_JOINED = 2**64 - 1
_NO_MARK = (b"-", 0)
_OUTCOMES = {outcome.encode(): outcome for outcome in Outcome}
_SPEAKS = {"0": False, "1": True}
_MARK = Struct(">cQ")
_USUAL_PROGRESS = (None, 0, 0, 0)


class BatchKeys:
    """The keys of one batch. Its percent-encoded id is their hash tag, so they share a slot on a Cluster.

    Encoding everything but letters, digits and `_.-~` keeps any two batches apart, whatever their ids contain.
    """

    __slots__ = ("essays", "meta", "stem", "summaries")

    def __init__(self, prefix: str, batch_id: str) -> None:
        self.stem = f"{prefix}{{{quote(batch_id, safe='')}}}:{LAYOUT}"
        self.summaries = f"{self.stem}:summaries"
        self.meta = f"{self.stem}:batch"
        self.essays = f"{self.stem}:essays"

    @property
    def all(self) -> tuple[str, str, str]:
        """In the order in which the merge script takes them."""
        return self.summaries, self.meta, self.essays


def outcome_field(phase: str, key: str) -> str:
    """Where an outcome stands; a phase's name has no colon."""
    return f"{OUTCOME_PREFIX}{phase}:{key}"


def invalid_field(phase: str, essay_id: str | None) -> str:
    """Where an invalidation stands. An essay's id may be any text, so the phase comes first."""
    return f"{INVALID_PREFIX}{phase}" if essay_id is ALL_ESSAYS else f"{INVALID_PREFIX}{phase}:{essay_id}"


def slot_name(slot: Slot) -> str:
    """What a slot is called; a phase's name has no blank."""
    phase, key = slot
    return phase if key == TIMED else f"{phase} {key}"


def encode_mark(mark: Mark) -> str:
    """A report as `c1732360000123456`: how the phase ended, and when in microseconds."""
    return f"{mark.outcome}{mark.at_us}"


def encode_ending(ending: Ending) -> str:
    """An outcome as `1732360000123456:0:completed_successfully`: when, whether it speaks for all, its status."""
    return f"{ending.at_us}:{ending.speaks_for_all:d}:{ending.status}"


def encode_expected(expected: Expected) -> str:
    """An expected count as `1732360000123456:30`."""
    return f"{expected.at_us}:{expected.count}"


def encode_joined(since_us: int) -> bytes:
    """The first part of an essay's record."""
    return since_us.to_bytes(_JOINED_BYTES, "big")


def encode_essay_mark(mark: Mark) -> bytes:
    """One of the other parts of an essay's record."""
    return _MARK.pack(mark.outcome.encode(), mark.at_us)


def encode_listed(outcome: Outcome) -> bytes:
    """The same for an essay on an outcome's list."""
    return _MARK.pack(outcome.encode(), 0)


def encode_essays(state: BatchState, essay_ids: Iterable[str], slots: Sequence[Slot]) -> dict[str, bytes]:
    """What a state knows of essays, each one's record.

    :param slots: in their order.
    """
    timed: list[Mapping[str, Mark]] = []
    listed: list[Mapping[str, Outcome]] = []
    for phase, key in slots:
        timed.append(state.essay_marks.get(phase, {}) if key == TIMED else {})
        listed.append({} if key == TIMED else state.outcome_marks.get(phase, {}).get(key, {}))
    records: dict[str, bytes] = {}
    for essay_id in essay_ids:
        parts: list[bytes | int] = [state.first_seen_us.get(essay_id, _NEVER_JOINED)]
        filled = 1
        for marks, outcomes in zip(timed, listed, strict=True):
            mark, outcome = marks.get(essay_id), outcomes.get(essay_id)
            if mark is not None:
                parts += (mark.outcome.encode(), mark.at_us)
            elif outcome is not None:
                parts += (outcome.encode(), 0)
            else:
                parts += _NO_MARK
                continue
            filled = len(parts)
        # Slots at the end that are empty are left out: an outcome that names others must not make this one longer.
        records[essay_id] = _record(filled // 2).pack(*parts[:filled])
    return records


def slots_in(meta: Mapping[str, str]) -> list[Slot]:
    """What stands in each slot of a batch's records.

    :raises ValueError: something else wrote there.
    """
    by_number: dict[int, Slot] = {}
    for field, number in meta.items():
        if field.startswith(SLOT_PREFIX):
            phase, _, key = field.removeprefix(SLOT_PREFIX).partition(" ")
            by_number[int(number)] = (phase, key)
    if sorted(by_number) != list(range(len(by_number))):
        raise ValueError(f"slots {sorted(by_number)}")
    return [by_number[number] for number in range(len(by_number))]


def decode_state(
    keys: BatchKeys, meta: Mapping[str, str], slots: Sequence[Slot], essays: Sequence[bytes]
) -> BatchState:
    """A state from what the store holds.

    :param slots: of `slots_in`.
    :param essays: each one's id, and behind it its record.
    :raises StoreCorrupted: something else wrote there.
    """
    try:
        state = _decode_meta(meta)
        in_slots: list[dict[str, Mark]] = [{} for _ in slots]
        for raw_id, record in zip(essays[::2], essays[1::2], strict=True):
            essay_id = raw_id.decode()
            filled, rest = divmod(len(record) - _JOINED_BYTES, _MARK_BYTES)
            if rest or not 0 <= filled <= len(slots):
                raise ValueError(f"a record of {len(record)} bytes")
            since_us, *parts = _record(filled).unpack(record)
            if since_us != _NEVER_JOINED:
                state.first_seen_us[essay_id] = since_us
            for in_slot, outcome, at_us in zip(in_slots, parts[::2], parts[1::2], strict=False):
                if outcome != b"-":
                    in_slot[essay_id] = Mark(_OUTCOMES[outcome], at_us)
        for (phase, key), marks in zip(slots, in_slots, strict=True):
            if not marks:
                continue
            if key == TIMED:
                state.essay_marks[phase] = marks
            elif key in state.outcomes.get(phase, {}):
                listed = {essay_id: mark.outcome for essay_id, mark in marks.items()}
                state.outcome_marks.setdefault(phase, {})[key] = listed
            else:
                raise ValueError("an outcome's list without the outcome")
    except (ValueError, KeyError) as error:
        raise StoreCorrupted(keys.stem, str(error)) from None
    return state


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
            "phases": {phase: _encode_progress(progress) for phase, progress in summary.progress.items()},
        },
        separators=(",", ":"),
    )


def decode_summary(key: str, text: bytes) -> tuple[BatchSummary, str | None]:
    """A summary from its string, and the mark that nothing is missing in it, if it has one.

    :raises StoreCorrupted: something else wrote there.
    """
    try:
        document = from_json(text)
        progress = {phase: _decode_progress(*numbers) for phase, numbers in document["phases"].items()}
        version, known, expected = document["v"], document["known"], document["expected"]
        _require_whole(version, known, 0 if expected is None else expected)
        return BatchSummary(version, known, expected, progress), document.get("whole")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupted(key, f"not a summary: {error}") from None


def _encode_progress(progress: PhaseProgress) -> list[int | None]:
    always = [int(progress.complete), progress.completed, progress.failed]
    further = [
        progress.outcome_at_us,
        progress.failed_before,
        progress.left_out,
        int(progress.covered),
    ]
    # What comes last is mostly as usual, and left out then.
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
) -> PhaseProgress:
    _require_whole(complete, completed, failed, failed_before, left_out, covered)
    _require_whole(0 if outcome_at_us is None else outcome_at_us)
    return PhaseProgress(complete == 1, completed, failed, failed_before, left_out, covered == 1, outcome_at_us)


def _decode_meta(meta: Mapping[str, str]) -> BatchState:
    state = BatchState()
    for field, text in meta.items():
        if field.startswith(REPORT_PREFIX):
            state.reports[field.removeprefix(REPORT_PREFIX)] = Mark(Outcome(text[:1]), int(text[1:]))
        elif field.startswith(OUTCOME_PREFIX):
            phase, _, key = field.removeprefix(OUTCOME_PREFIX).partition(":")
            at_us, speaks, status = text.split(":", 2)
            state.outcomes.setdefault(phase, {})[key] = Ending(status, _SPEAKS[speaks], int(at_us))
        elif field.startswith(INVALID_PREFIX):
            phase, colon, essay_id = field.removeprefix(INVALID_PREFIX).partition(":")
            state.invalidations.setdefault(phase, {})[essay_id if colon else ALL_ESSAYS] = int(text)
        elif field == EXPECTED_FIELD:
            state.expected = _expected(text)
    return state


@cache
def _record(slots: int) -> Struct:
    return Struct(">Q" + "cQ" * slots)


def _require_whole(*values: Any) -> None:
    if not all(type(value) is int for value in values):
        raise TypeError("not a whole number")


def _expected(text: str) -> Expected:
    at_us, _, count = text.partition(":")
    return Expected(int(count), int(at_us))
