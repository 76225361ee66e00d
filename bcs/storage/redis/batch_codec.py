"""Encodes the state and the summary of a batch for Redis.

The values of the whole batch are text: its version, the expected number of essays, and the registers of each phase. The
values of one essay are a row of fixed width, because a batch has thousands of essays: the time when the essay was first
seen, in eight bytes, then for each slot a letter for the outcome and a time in eight bytes. A slot holds the marks of
one phase that carry their own time, or the list of one outcome without its own time; in a list the time is 0, and that
of the outcome counts. The batch has the number of each slot (`slot:<phase>`, `slot:<phase> <repeat key>`). Numbers
begin with their highest byte, so that their bytes compare like the numbers.
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
"""A part of every key, so that data in another layout is not found."""

EXPECTED_FIELD = "expected"
VERSION_FIELD = "version"
COMPLETE_STAMP_FIELD = "complete_stamp"
"""The field of the complete stamp, with the version at which Redis had all that the archive has of the batch."""
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
_BOOLEANS = {"0": False, "1": True}
_MARK = Struct(">cQ")
_USUAL_PROGRESS = (None, 0, 0, 0)


class BatchKeys:
    """The keys of one batch. Its percent-encoded id is their hash tag, so that they share a slot of a Redis Cluster.

    Because everything but letters, digits and `_.-~` is encoded, two batches never have the same keys.
    """

    __slots__ = ("essays", "meta", "stem", "summaries")

    def __init__(self, prefix: str, batch_id: str) -> None:
        self.stem = f"{prefix}{{{quote(batch_id, safe='')}}}:{LAYOUT}"
        self.summaries = f"{self.stem}:summaries"
        self.meta = f"{self.stem}:batch"
        self.essays = f"{self.stem}:essays"

    @property
    def all(self) -> tuple[str, str, str]:
        """All keys, in the order that the merge script expects."""
        return self.summaries, self.meta, self.essays


def outcome_field(phase: str, key: str) -> str:
    """The field of an outcome. A phase's name has no colon, so the field is unambiguous."""
    return f"{OUTCOME_PREFIX}{phase}:{key}"


def invalid_field(phase: str, essay_id: str | None) -> str:
    """The field of an invalidation. An essay's id may be any text, so the phase comes first."""
    return f"{INVALID_PREFIX}{phase}" if essay_id is ALL_ESSAYS else f"{INVALID_PREFIX}{phase}:{essay_id}"


def slot_name(slot: Slot) -> str:
    """The name of a slot. A phase's name has no blank, so the slot's name is unambiguous."""
    phase, key = slot
    return phase if key == TIMED else f"{phase} {key}"


def encode_mark(mark: Mark) -> str:
    """A report as `c1732360000123456`: its outcome, and its time in microseconds since 1970 UTC."""
    return f"{mark.outcome}{mark.at_us}"


def encode_ending(ending: Ending) -> str:
    """An outcome as `1732360000123456:0:completed_successfully`: its time, `speaks_for_all`, its status."""
    return f"{ending.at_us}:{ending.speaks_for_all:d}:{ending.status}"


def encode_expected(expected: Expected) -> str:
    """An expected count as `1732360000123456:30`: its time, the count."""
    return f"{expected.at_us}:{expected.count}"


def encode_joined(since_us: int) -> bytes:
    """The first part of an essay's row: when the essay was first seen."""
    return since_us.to_bytes(_JOINED_BYTES, "big")


def encode_essay_mark(mark: Mark) -> bytes:
    """The part of an essay's row for one slot with a mark."""
    return _MARK.pack(mark.outcome.encode(), mark.at_us)


def encode_listed(outcome: Outcome) -> bytes:
    """The part of an essay's row for one slot with an outcome's list."""
    return _MARK.pack(outcome.encode(), 0)


def encoding_essays(state: BatchState, essay_ids: Iterable[str], slots: Sequence[Slot]) -> Sliced[dict[str, bytes]]:
    """Essay to its row, from a state.

    :param slots: the slots in their order.
    """
    timed: list[Mapping[str, Mark]] = []
    listed: list[Mapping[str, Outcome]] = []
    for phase, key in slots:
        timed.append(state.essay_marks.get(phase, _NOTHING) if key == TIMED else _NOTHING)
        listed.append(_NOTHING if key == TIMED else state.outcome_marks.get(phase, _NOTHING).get(key, _NOTHING))
    first_seen_us, rows = state.first_seen_us, dict[str, bytes]()
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
            # Empty slots at the end are left out, so that an outcome for other essays does not make this row longer.
            rows[essay_id] = _row(filled).pack(*parts[:filled])
        yield
    return rows


def slots_in(meta: Mapping[str, str]) -> list[Slot]:
    """The slots of a batch's rows, in their order.

    :raises ValueError: BCS did not write these fields.
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
    """A state from the values in Redis.

    :param slots: the result of `slots_in`.
    :param essays: for each essay its id, then its row.
    :raises StoreCorrupted: BCS did not write these values.
    """
    try:
        state = _decode_meta(meta)
        columns = _Columns(slots)
        length = 2 * _essays_in_slice(slots)
        for start in range(0, len(essays), length):
            some = essays[start : start + length]
            for width, ids, rows in _by_width(some[::2], some[1::2]):
                state.first_seen_us.update(columns.read(width, ids, rows))
            yield
        columns.put_into(state)
    except (ValueError, KeyError) as error:
        raise StoreCorrupted(keys.stem, str(error)) from None
    return state


class _Columns:
    """Decodes essays' rows, and collects the values of each slot."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._marks: list[dict[str, Mark]] = [{} for _ in slots]
        self._listed: list[dict[str, Outcome]] = [{} for _ in slots]
        # All essays of an outcome with a time have equal marks, so one object is enough.
        self._made: dict[tuple[bytes, int], Mark] = {}

    def read(self, width: int, ids: Sequence[str], rows: Sequence[bytes]) -> Iterable[tuple[str, int]]:
        """Decode rows of one width.

        :param width: the number of parts of each row.
        :returns: essay and the time when it was first seen, for essays that have such a time.
        :raises ValueError: the rows have more slots than the batch.
        :raises KeyError: a mark has an unknown outcome.
        """
        if width > _width(len(self._slots)):
            raise ValueError(f"a row of {len(rows[0])} bytes")
        joined, *cells = zip(*_row(width).iter_unpack(b"".join(rows)), strict=True)
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
        """Put the collected values into a state.

        :raises ValueError: an outcome's list is there without the outcome.
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


def _by_width(raw_ids: Sequence[bytes], rows: Sequence[bytes]) -> Iterator[tuple[int, Sequence[str], Sequence[bytes]]]:
    """Rows grouped by width: the number of parts, the essays' ids, and their rows.

    :raises ValueError: a row has an impossible width, or an id is not UTF-8.
    """
    ids = [raw_id.decode() for raw_id in raw_ids]
    lengths = set(map(len, rows))
    for length in sorted(lengths):
        filled, rest = divmod(length - _JOINED_BYTES, _MARK_BYTES)
        if rest or filled < 0:
            raise ValueError(f"a row of {length} bytes")
        if len(lengths) == 1:
            yield _width(filled), ids, rows
        else:
            places = [place for place, row in enumerate(rows) if len(row) == length]
            yield _width(filled), [ids[place] for place in places], [rows[place] for place in places]


def encode_summary(summary: BatchSummary, stamp: str | None = None) -> str:
    """A summary as a small JSON text.

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
    """A summary from its text, and its complete stamp, if it has one.

    :raises StoreCorrupted: BCS did not write this text.
    """
    try:
        document = from_json(text)
        progress = {phase: _decode_progress(*numbers) for phase, numbers in document["phases"].items()}
        version, known, expected = document["v"], document["known"], document["expected"]
        _require_integers(version, known, 0 if expected is None else expected)
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
) -> PhaseProgress:
    _require_integers(complete, completed, failed, failed_before, left_out, covered)
    _require_integers(0 if outcome_at_us is None else outcome_at_us)
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
            state.outcomes.setdefault(phase, {})[key] = Ending(status, _BOOLEANS[speaks], int(at_us))
        elif field.startswith(INVALID_PREFIX):
            phase, colon, essay_id = field.removeprefix(INVALID_PREFIX).partition(":")
            state.invalidations.setdefault(phase, {})[essay_id if colon else ALL_ESSAYS] = int(text)
        elif field == EXPECTED_FIELD:
            state.expected = _expected(text)
    return state


def _essays_in_slice(slots: Sequence[Slot]) -> int:
    # Each slot takes time, so more slots mean fewer essays in a slice.
    return max(1, SLICE * 5 // (5 + len(slots)))


def _width(slots: int) -> int:
    """How many parts a row has that has so many slots."""
    return 1 + 2 * slots


@cache
def _row(width: int) -> Struct:
    return Struct(">Q" + "cQ" * (width // 2))


def _require_integers(*values: Any) -> None:
    if not all(type(value) is int for value in values):
        raise TypeError("not a whole number")


def _expected(text: str) -> Expected:
    at_us, _, count = text.partition(":")
    return Expected(int(count), int(at_us))
