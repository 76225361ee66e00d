"""How a batch is stored in Redis: its keys, and the fields and values of the hash with its facts.

Every value has at most 64 bytes as long as a batch has at most seven slots. So Redis keeps the hash of a usual batch in
its compact form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from struct import Struct
from urllib.parse import quote

from bcs.domain.columns import NEVER_SEEN, NO_MARK, EssayColumns, Slot, mark_number, mark_of, outcome_of
from bcs.domain.erasure import decode_tombstone
from bcs.domain.facts import Outcome
from bcs.domain.slices import SLICE, Sliced, in_slices
from bcs.domain.state import ALL_ESSAYS, TIMED, BatchState, Ending, Expected, Mark
from bcs.errors import Tombstone

LAYOUT = 3
"""A part of every key, so that data in another layout is not found."""

VERSION_FIELD = "version"
STAMP_FIELD = "complete"
"""The complete stamp, see `ArchiveBackfill`."""
COUNT_FIELD = "essays"
"""How many essays have a row."""
SLOTS_FIELD = "slots"
"""How many slots the rows have."""
EXPECTED_FIELD = "expected"
ERASED_FIELD = "erased"
"""The tombstone of an erased batch, which refuses all facts. Its hash has nothing else, once the batch is erased."""
LAWS_FIELD = "laws"
"""The fingerprints of the laws that have a stored summary, so that these summaries can be found."""
REPORT_PREFIX = "report:"
OUTCOME_PREFIX = "outcome:"
INVALID_PREFIX = "invalid:"
DEFINITION_PREFIX = "definition:"
SLOT_PREFIX = "slot:"

# The first byte of an essay's field; no other field begins with it.
_UUID, _TEXT = b"u", b"t"
_ESSAY_BYTES = frozenset(_UUID + _TEXT)
_UUID_BYTES = 16
_NUMBER_BYTES = 8
_BOOLEANS = {"0": False, "1": True}


class BatchKeys:
    """The keys of one batch. Its percent-encoded id is their hash tag, so that they share a slot of a Redis Cluster.

    Because everything but letters, digits and `_.-~` is encoded, two batches never have the same keys.
    """

    __slots__ = ("facts", "former", "stem")

    def __init__(self, prefix: str, batch_id: str) -> None:
        tagged = f"{prefix}{{{quote(batch_id, safe='')}}}"
        self.stem = f"{tagged}:{LAYOUT}"
        self.facts = f"{self.stem}:facts"
        self.former = f"{tagged}:2:batch", f"{tagged}:2:essays"
        """The keys of the former layout, see `bcs.storage.redis.former_layout`."""

    def summary(self, fingerprint: str) -> str:
        """The key of the summary under one law.

        :param fingerprint: see `CompletionLaw`.
        """
        return f"{self.stem}:summary:{fingerprint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch as it was read from Redis.

    :param registers: the registers that are not about single essays.
    :param essays: the fields of the essays, in the order of the columns.
    :param slots: the slots of the essays' rows, in their order.
    :param version: rises with every change; None where the batch is unknown.
    :param stamp: the complete stamp, see `ArchiveBackfill`; None where the batch has none.
    :param redis: the identity of the server that the batch was read from; empty where the server does not report one.
    :param former: what is stored of the batch in the former layout.
    :param erased: the tombstone of an erased batch.
    """

    registers: BatchState
    essays: Sequence[bytes] = ()
    columns: EssayColumns = field(default_factory=lambda: EssayColumns((), {}))
    slots: Sequence[Slot] = ()
    version: int | None = None
    stamp: str | None = None
    redis: str = ""
    former: BatchState | None = None
    erased: Tombstone | None = None


def essay_field(essay_id: str) -> bytes:
    """The field of an essay. A UUID in its usual form takes 17 bytes instead of 37."""
    if len(essay_id) == 36:
        try:
            packed = bytes.fromhex(essay_id.replace("-", ""))
        except ValueError:
            packed = b""
        if len(packed) == _UUID_BYTES and _uuid_text(packed) == essay_id:
            return _UUID + packed
    return _TEXT + essay_id.encode()


def essay_of(name: bytes) -> str:
    """The essay of a field.

    :raises ValueError: BCS did not write this field.
    """
    if name[:1] == _UUID:
        if len(name) != 1 + _UUID_BYTES:
            raise ValueError(f"an essay's field of {len(name)} bytes")
        return _uuid_text(name[1:])
    return name[1:].decode()


def outcome_field(phase: str, key: str) -> str:
    """The field of an outcome. A phase's name has no colon, so the field is unambiguous."""
    return f"{OUTCOME_PREFIX}{phase}:{key}"


def invalid_field(phase: str, essay_id: str | None) -> str:
    """The field of an invalidation. An essay's id may be any text, so the phase comes first."""
    return f"{INVALID_PREFIX}{phase}" if essay_id is ALL_ESSAYS else f"{INVALID_PREFIX}{phase}:{essay_id}"


def definition_field(phase: str, definition: str) -> str:
    """The field with the newest time of a fact that was recorded under a definition."""
    return f"{DEFINITION_PREFIX}{phase}:{definition}"


def slot_field(slot: Slot) -> str:
    """The field with a slot's number. A phase's name has no blank, so the field is unambiguous."""
    phase, key = slot
    return f"{SLOT_PREFIX}{phase}" if key == TIMED else f"{SLOT_PREFIX}{phase} {key}"


def encode_mark(mark: Mark) -> str:
    """A report as `c1732360000123456`: its outcome, and its time in microseconds since 1970 UTC."""
    return f"{mark.outcome}{mark.at_us}"


def encode_ending(ending: Ending) -> str:
    """An outcome as `1732360000123456:0:completed_successfully`: its time, `speaks_for_all`, its status."""
    return f"{ending.at_us}:{ending.speaks_for_all:d}:{ending.status}"


def encode_expected(expected: Expected) -> str:
    """An expected count as `1732360000123456:30`: its time, the count."""
    return f"{expected.at_us}:{expected.count}"


def slots_of(state: BatchState) -> list[Slot]:
    """The slots that a state has marks for."""
    slots = [(phase, TIMED) for phase, marks in state.essay_marks.items() if marks]
    slots += [(phase, key) for phase, by_key in state.outcome_marks.items() for key, listed in by_key.items() if listed]
    return slots


def essays_of(state: BatchState) -> Iterable[str]:
    """The essays that a state has a mark or a time for."""
    if not state.outcome_marks and all(
        marks.keys() <= state.first_seen_us.keys() for marks in state.essay_marks.values()
    ):
        return state.first_seen_us
    listed = (essays for by_key in state.outcome_marks.values() for essays in by_key.values())
    return state.first_seen_us.keys() | set().union(*state.essay_marks.values(), *listed)


def encoding_rows(state: BatchState, essays: Iterable[str], slots: Sequence[Slot]) -> Sliced[list[bytes]]:
    """Each essay's field and its row, from a state: when it was first seen, and its mark in each slot.

    :param slots: the slots in their order.
    """
    timed: list[Mapping[str, Mark]] = []
    listed: list[Mapping[str, Outcome]] = []
    for phase, key in slots:
        timed.append(state.essay_marks.get(phase, {}) if key == TIMED else {})
        listed.append({} if key == TIMED else state.outcome_marks.get(phase, {}).get(key, {}))
    rows: list[bytes] = []
    for some in in_slices(essays, _essays_in_slice(len(slots))):
        for essay_id in some:
            numbers = [state.first_seen_us.get(essay_id, NEVER_SEEN)]
            filled = 1
            for marks, outcomes in zip(timed, listed, strict=True):
                mark, outcome = marks.get(essay_id), outcomes.get(essay_id)
                if mark is not None:
                    numbers.append(mark_number(mark.outcome, mark.at_us))
                elif outcome is not None:
                    numbers.append(mark_number(outcome))
                else:
                    numbers.append(NO_MARK)
                    continue
                filled = len(numbers)
            # Empty slots at the end are left out, so that an outcome for other essays does not make this row longer.
            rows += (essay_field(essay_id), _row(filled).pack(*numbers[:filled]))
        yield
    return rows


def decoding_batch(fields: Sequence[bytes], redis: str) -> Sliced[StoredBatch]:
    """A batch from the fields and values of its hash, in turns.

    :param redis: the identity of the server that sent them.
    :raises ValueError, KeyError: BCS did not write these values.
    """
    registers: dict[str, str] = {}
    essays: list[bytes] = []
    rows: list[bytes] = []
    for start in range(0, len(fields), _FIELDS_IN_SLICE):
        some = fields[start : start + _FIELDS_IN_SLICE]
        for name, value in zip(some[::2], some[1::2], strict=True):
            if name[0] in _ESSAY_BYTES:
                essays.append(name)
                rows.append(value)
            else:
                registers[name.decode()] = value.decode()
        yield
    slots = _slots_in(registers)
    columns = yield from _decoding_columns(rows, slots)
    version = registers.get(VERSION_FIELD)
    if int(registers.get(COUNT_FIELD, 0)) < 0:
        raise ValueError(f"{registers[COUNT_FIELD]} essays")
    return StoredBatch(
        registers=_decode_registers(registers),
        essays=essays,
        columns=columns,
        slots=slots,
        version=None if version is None else int(version),
        stamp=registers.get(STAMP_FIELD),
        redis=redis,
        erased=decode_tombstone(registers[ERASED_FIELD]) if ERASED_FIELD in registers else None,
    )


def building_state(stored: StoredBatch) -> Sliced[BatchState]:
    """The state of a stored batch.

    :raises ValueError: BCS did not write these values.
    """
    state = yield from stored.registers.copying()
    marks: list[dict[str, Mark]] = [{} for _ in stored.slots]
    listed: list[dict[str, Outcome]] = [{} for _ in stored.slots]
    made: dict[int, Mark] = {}  # essays of one outcome have equal marks, so one object is enough
    columns = [stored.columns.marks[slot] for slot in stored.slots]
    length = _essays_in_slice(len(columns))
    for start in range(0, len(stored.essays), length):
        ids = list(map(essay_of, stored.essays[start : start + length]))
        seen = zip(ids, stored.columns.first_seen_us[start : start + length], strict=True)
        state.first_seen_us.update((essay, since_us) for essay, since_us in seen if since_us != NEVER_SEEN)
        for number, (_, key) in enumerate(stored.slots):
            cells = zip(ids, columns[number][start : start + length], strict=True)
            if key == TIMED:
                own = marks[number]
                for essay, cell in cells:
                    if cell != NO_MARK:
                        mark = made.get(cell)
                        own[essay] = made.setdefault(cell, mark_of(cell)) if mark is None else mark
            else:
                listed[number].update((essay, outcome_of(cell)) for essay, cell in cells if cell != NO_MARK)
        yield
    for (phase, key), own, on_list in zip(stored.slots, marks, listed, strict=True):
        if own:
            state.essay_marks[phase] = own
        if on_list:
            if key not in state.outcomes.get(phase, {}):
                raise ValueError("an outcome's list without the outcome")
            state.outcome_marks.setdefault(phase, {})[key] = on_list
    return state


def _decoding_columns(rows: Sequence[bytes], slots: Sequence[Slot]) -> Sliced[EssayColumns]:
    columns: list[list[int]] = [[] for _ in range(1 + len(slots))]
    length = _essays_in_slice(len(slots))
    for start in range(0, len(rows), length):
        some = rows[start : start + length]
        widths = set(map(len, some))
        widest, rest = divmod(max(widths), _NUMBER_BYTES)
        if rest or not min(widths) or widest > len(columns):
            raise ValueError(f"rows of {sorted(widths)} bytes for {len(slots)} slots")
        if len(widths) > 1:
            if any(width % _NUMBER_BYTES for width in widths):
                raise ValueError(f"rows of {sorted(widths)} bytes")
            some = [row.ljust(max(widths), b"\0") for row in some]
        for column, numbers in zip(columns, zip(*_row(widest).iter_unpack(b"".join(some)), strict=True), strict=False):
            column += numbers
        for column in columns[widest:]:
            column += [NO_MARK] * len(some)
        yield
    return EssayColumns(columns[0], dict(zip(slots, columns[1:], strict=True)))


def _slots_in(registers: Mapping[str, str]) -> list[Slot]:
    by_number: dict[int, Slot] = {}
    for name, number in registers.items():
        if name.startswith(SLOT_PREFIX):
            phase, _, key = name.removeprefix(SLOT_PREFIX).partition(" ")
            by_number[int(number)] = (phase, key)
    if sorted(by_number) != list(range(int(registers.get(SLOTS_FIELD, 0)))):
        raise ValueError(f"slots {sorted(by_number)}")
    return [by_number[number] for number in range(len(by_number))]


def _decode_registers(registers: Mapping[str, str]) -> BatchState:
    state = BatchState()
    for name, text in registers.items():
        if name.startswith(REPORT_PREFIX):
            state.reports[name.removeprefix(REPORT_PREFIX)] = Mark(Outcome(text[:1]), int(text[1:]))
        elif name.startswith(OUTCOME_PREFIX):
            phase, _, key = name.removeprefix(OUTCOME_PREFIX).partition(":")
            at_us, speaks, status = text.split(":", 2)
            state.outcomes.setdefault(phase, {})[key] = Ending(status, _BOOLEANS[speaks], int(at_us))
        elif name.startswith(INVALID_PREFIX):
            phase, colon, essay_id = name.removeprefix(INVALID_PREFIX).partition(":")
            state.invalidations.setdefault(phase, {})[essay_id if colon else ALL_ESSAYS] = int(text)
        elif name.startswith(DEFINITION_PREFIX):
            phase, _, definition = name.removeprefix(DEFINITION_PREFIX).partition(":")
            state.definitions.setdefault(phase, {})[definition] = int(text)
        elif name == EXPECTED_FIELD:
            at, _, count = text.partition(":")
            state.expected = Expected(int(count), int(at))
    return state


# Sorting a field takes a fifth of the time that `SLICE` is made for.
_FIELDS_IN_SLICE = 2 * 5 * SLICE


def _essays_in_slice(slots: int) -> int:
    # Each slot takes time, so more slots mean fewer essays in a slice.
    return max(1, SLICE * 5 // (5 + slots))


def _uuid_text(packed: bytes) -> str:
    digits = packed.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@cache
def _row(width: int) -> Struct:
    return Struct(f">{width}Q")
