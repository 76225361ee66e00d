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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from struct import Struct
from typing import Any
from urllib.parse import quote

from pydantic_core import from_json

from bcs.domain.facts import Outcome
from bcs.domain.progress import BatchSummary, PhaseProgress
from bcs.domain.slices import SLICE, Sliced, in_slices
from bcs.domain.state import ALL_ESSAYS, TIMED, BatchState, Ending, Expected, Mark
from bcs.errors import StoreCorrupted

LAYOUT = 2
"""Part of every key, so that what another layout wrote is not found."""

EXPECTED_FIELD = "expected"
VERSION_FIELD = "version"
COMPLETE_STAMP_FIELD = "complete_stamp"
"""The version at which nothing that the archive has of the batch was missing here, and the complete stamp."""
FORMER_STAMP_FIELD = "whole"
"""The same, written by releases before 0.2.0; see `former_stamp`."""
REPORT_PREFIX = "report:"
OUTCOME_PREFIX = "outcome:"
INVALID_PREFIX = "invalid:"
SLOT_PREFIX = "slot:"

Slot = tuple[str, str]
"""A phase, and `TIMED` or the repeat key of an outcome."""

_JOINED_BYTES = 8
_MARK_BYTES = 9
_NEVER_JOINED = 2**64 - 1
_EMPTY = b"-"
_OUTCOMES = {outcome.encode(): outcome for outcome in Outcome}
_OUTCOME_CODES = {outcome: code for code, outcome in _OUTCOMES.items()}
_NO_MARK = (_EMPTY, 0)
_NOTHING: Mapping[Any, Any] = {}
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


def encoding_essays(state: BatchState, essay_ids: Iterable[str], slots: Sequence[Slot]) -> Sliced[dict[str, bytes]]:
    """What a state knows of essays, each one's record.

    :param slots: in their order.
    """
    timed: list[Mapping[str, Mark]] = []
    listed: list[Mapping[str, Outcome]] = []
    for phase, key in slots:
        timed.append(state.essay_marks.get(phase, _NOTHING) if key == TIMED else _NOTHING)
        listed.append(_NOTHING if key == TIMED else state.outcome_marks.get(phase, _NOTHING).get(key, _NOTHING))
    first_seen_us, records = state.first_seen_us, dict[str, bytes]()
    for essays in in_slices(essay_ids, _essays_in_slice(slots)):
        for essay_id in essays:
            parts: list[bytes | int] = [first_seen_us.get(essay_id, _NEVER_JOINED)]
            filled = 1
            for marks, outcomes in zip(timed, listed, strict=True):
                mark, outcome = marks.get(essay_id), outcomes.get(essay_id)
                if mark is not None:
                    parts += (_OUTCOME_CODES[mark.outcome], mark.at_us)
                elif outcome is not None:
                    parts += (_OUTCOME_CODES[outcome], 0)
                else:
                    parts += _NO_MARK
                    continue
                filled = len(parts)
            # Slots at the end that are empty are left out: an outcome that names others must not make this one longer.
            records[essay_id] = _record(filled).pack(*parts[:filled])
        yield
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


def decoding_state(
    keys: BatchKeys, meta: Mapping[str, str], slots: Sequence[Slot], essays: Sequence[bytes]
) -> Sliced[BatchState]:
    """A state from what the store holds.

    :param slots: of `slots_in`.
    :param essays: each one's id, and behind it its record.
    :raises StoreCorrupted: something else wrote there.
    """
    try:
        state = _decode_meta(meta)
        columns = _Columns(slots)
        length = 2 * _essays_in_slice(slots)
        for start in range(0, len(essays), length):
            some = essays[start : start + length]
            for width, ids, records in _by_width(some[::2], some[1::2]):
                state.first_seen_us.update(columns.read(width, ids, records))
            yield
        columns.put_into(state)
    except (ValueError, KeyError) as error:
        raise StoreCorrupted(keys.stem, str(error)) from None
    return state


class _Columns:
    """Reads essays' records, and collects what stands in each slot."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._marks: list[dict[str, Mark]] = [{} for _ in slots]
        self._listed: list[dict[str, Outcome]] = [{} for _ in slots]
        # An outcome with a time leaves the same mark on each of its essays.
        self._made: dict[tuple[bytes, int], Mark] = {}

    def read(self, width: int, ids: Sequence[str], records: Sequence[bytes]) -> Iterable[tuple[str, int]]:
        """Read records with so many parts.

        :returns: when each essay was first seen, where it was.
        :raises ValueError: they have more slots than there are.
        :raises KeyError: a mark is none.
        """
        if width > _width(len(self._slots)):
            raise ValueError(f"a record of {len(records[0])} bytes")
        joined, *cells = zip(*_record(width).iter_unpack(b"".join(records)), strict=True)
        for number, (outcomes, times) in enumerate(zip(cells[::2], cells[1::2], strict=True)):
            if self._slots[number][1] == TIMED:
                self._marks[number].update(
                    (essay_id, self._mark(outcome, at_us))
                    for essay_id, outcome, at_us in zip(ids, outcomes, times, strict=True)
                    if outcome != _EMPTY
                )
            else:
                self._listed[number].update(
                    (essay_id, _OUTCOMES[outcome])
                    for essay_id, outcome in zip(ids, outcomes, strict=True)
                    if outcome != _EMPTY
                )
        pairs = zip(ids, joined, strict=True)
        return (pair for pair in pairs if pair[1] != _NEVER_JOINED) if _NEVER_JOINED in joined else pairs

    def put_into(self, state: BatchState) -> None:
        """Put where it belongs what was read.

        :raises ValueError: an outcome's list stands there without the outcome.
        """
        for (phase, key), marks, listed in zip(self._slots, self._marks, self._listed, strict=True):
            if marks:
                state.essay_marks[phase] = marks
            if listed:
                if key not in state.outcomes.get(phase, {}):
                    raise ValueError("an outcome's list without the outcome")
                state.outcome_marks.setdefault(phase, {})[key] = listed

    def _mark(self, outcome: bytes, at_us: int) -> Mark:
        mark = self._made.get((outcome, at_us))
        if mark is None:
            mark = self._made[outcome, at_us] = Mark(_OUTCOMES[outcome], at_us)
        return mark


def _by_width(
    raw_ids: Sequence[bytes], records: Sequence[bytes]
) -> Iterator[tuple[int, Sequence[str], Sequence[bytes]]]:
    """Records of one width together: its number of parts, the essays' ids, and their records.

    :raises ValueError: a record has a width that none can have, or an id is no text.
    """
    ids = [raw_id.decode() for raw_id in raw_ids]
    lengths = set(map(len, records))
    for length in sorted(lengths):
        filled, rest = divmod(length - _JOINED_BYTES, _MARK_BYTES)
        if rest or filled < 0:
            raise ValueError(f"a record of {length} bytes")
        if len(lengths) == 1:
            yield _width(filled), ids, records
        else:
            places = [place for place, record in enumerate(records) if len(record) == length]
            yield _width(filled), [ids[place] for place in places], [records[place] for place in places]


def encode_summary(summary: BatchSummary, stamp: str | None = None) -> str:
    """A summary as one small string.

    :param stamp: the complete stamp, see `ArchiveBackfill`.
    """
    return json.dumps(
        {
            "v": summary.version,
            **({COMPLETE_STAMP_FIELD: stamp} if stamp is not None else {}),
            "known": summary.known,
            "expected": summary.expected,
            "phases": {phase: _encode_progress(progress) for phase, progress in summary.progress.items()},
        },
        separators=(",", ":"),
    )


def decode_summary(key: str, text: bytes) -> tuple[BatchSummary, str | None]:
    """A summary from its string, and its complete stamp, if it has one.

    :raises StoreCorrupted: something else wrote there.
    """
    try:
        document = from_json(text)
        progress = {phase: _decode_progress(*numbers) for phase, numbers in document["phases"].items()}
        version, known, expected = document["v"], document["known"], document["expected"]
        _require_whole(version, known, 0 if expected is None else expected)
        stamp = document.get(COMPLETE_STAMP_FIELD) or former_stamp(document.get(FORMER_STAMP_FIELD))
        return BatchSummary(version, known, expected, progress), stamp
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupted(key, f"not a summary: {error}") from None


def former_stamp(stamp: str | None) -> str | None:
    """The complete stamp of a release before 0.2.0, as this release reads it.

    Such a release did not count the entries in this release's queue before it stamped a batch. So the stamp still names
    the Redis that the batch was written to, and no longer the archive: the batch does not count as complete.
    """
    return None if stamp is None else stamp.partition("/")[0]


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
    return PhaseProgress(
        complete == 1,
        completed,
        failed,
        failed_before=failed_before,
        left_out=left_out,
        covered=covered == 1,
        outcome_at_us=outcome_at_us,
    )


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


def _essays_in_slice(slots: Sequence[Slot]) -> int:
    # Each of them takes its time.
    return max(1, SLICE * 5 // (5 + len(slots)))


def _width(slots: int) -> int:
    """How many parts a record with so many slots has."""
    return 1 + 2 * slots


@cache
def _record(width: int) -> Struct:
    return Struct(">Q" + "cQ" * (width // 2))


def _require_whole(*values: Any) -> None:
    if not all(type(value) is int for value in values):
        raise TypeError("not a whole number")


def _expected(text: str) -> Expected:
    at_us, _, count = text.partition(":")
    return Expected(int(count), int(at_us))
