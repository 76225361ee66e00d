"""The Redis commands that read and write a batch, and the decoding of their replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from bcs.domain.slices import Sliced, in_slices
from bcs.domain.state import TIMED, BatchState
from bcs.errors import StoreCorrupted
from bcs.storage.redis.batch_codec import (
    COUNT_FIELD,
    EXPECTED_FIELD,
    REPORT_PREFIX,
    SLOTS_FIELD,
    STAMP_FIELD,
    VERSION_FIELD,
    BatchKeys,
    StoredBatch,
    building_state,
    decoding_batch,
    definition_field,
    encode_ending,
    encode_expected,
    encode_mark,
    encoding_rows,
    essays_of,
    invalid_field,
    outcome_field,
    slot_field,
    slots_of,
)
from bcs.storage.redis.commands import Command
from bcs.storage.redis.former_layout import converting_former

# Packing a longer command would block the event loop.
_FIELDS_PER_COMMAND = 1000


def reads(keys: BatchKeys, *, former: bool = True) -> list[Command]:
    """The commands that read a batch; `decoding` takes their replies.

    :param former: False where the batch has no keys of the former layout.
    """
    # The former keys first: they move into the new hash while other replicas read.
    return [("HGETALL", key) for key in ((*keys.former, keys.facts) if former else (keys.facts,))]


def watch(keys: BatchKeys) -> list[Command]:
    """The commands that watch and read a batch; `decoding` takes all replies but the first."""
    return [("WATCH", keys.facts, *keys.former), *reads(keys)]


def decoding(keys: BatchKeys, replies: Sequence[Any], redis: str) -> Sliced[StoredBatch]:
    """A batch from the replies to `reads`.

    :param redis: the identity of the server that sent the replies.
    :raises StoreCorrupted: BCS did not write these values.
    """
    *former, fields = replies
    try:
        stored = yield from decoding_batch(fields, redis)
        former_fields = (yield from converting_former(*former)) if former else []
        if former_fields:
            taken_over = yield from decoding_batch(former_fields, redis)
            former_state = yield from building_state(taken_over)
            stored = replace(stored, former=former_state, stamp=stored.stamp or taken_over.stamp)
    except (ValueError, LookupError) as error:
        raise StoreCorrupted(keys.stem, str(error)) from None
    return stored


def decoding_state(keys: BatchKeys, stored: StoredBatch) -> Sliced[BatchState]:
    """The state of a batch that was read.

    :raises StoreCorrupted: BCS did not write these values.
    """
    try:
        state = yield from building_state(stored)
    except (ValueError, LookupError) as error:
        raise StoreCorrupted(keys.stem, str(error)) from None
    if stored.former:
        yield from state.merging(stored.former)
    return state


def merging(delta: BatchState, *, ttl_ms: int, stamp: str, max_essays: int) -> Sliced[list[str | bytes | int]]:
    """The arguments of the merge script for a delta.

    :param ttl_ms: how long the batch is kept from now on, in milliseconds.
    :param stamp: the beginning of the stamp that the batch must have; empty if it needs none.
    :param max_essays: how many essays the batch may have; 0 for no limit.
    """
    slots = slots_of(delta)
    rows = yield from encoding_rows(delta, essays_of(delta), slots)
    return [
        ttl_ms,
        stamp,
        max_essays,
        len(slots),
        *map(slot_field, slots),
        len(rows) // 2,
        *rows,
        *chain.from_iterable(_registers(delta)),
    ]


def writing(
    keys: BatchKeys, stored: StoredBatch, state: BatchState, changed: BatchState, version: int, stamp: str | None
) -> Sliced[list[Command]]:
    """The commands that write the changed registers of a batch that was watched.

    :param stored: the batch as it was read.
    :param state: the batch with the changes merged in.
    :param version: the version of the batch with the changes.
    :param stamp: the complete stamp; None where something may be missing.
    """
    slots = [*stored.slots, *(slot for slot in sorted(slots_of(changed)) if slot not in stored.slots)]
    rows = yield from encoding_rows(state, essays_of(changed), slots)
    known = set(stored.essays)
    essays = len(known) + sum(name not in known for name in rows[::2])
    fields: list[str | bytes | int] = [VERSION_FIELD, version, COUNT_FIELD, essays, SLOTS_FIELD, len(slots), *rows]
    if stamp is not None:
        fields += (STAMP_FIELD, stamp)
    for number, slot in enumerate(slots[len(stored.slots) :], len(stored.slots)):
        fields += (slot_field(slot), number)
    for _, name, value in _registers(changed):
        fields += (name, value)
    yield
    return [("HSET", keys.facts, *some) for some in in_slices(fields, 2 * _FIELDS_PER_COMMAND)]


def _registers(state: BatchState) -> list[tuple[str, str, str]]:
    """The registers that are not about single essays: the rule of the merge script, the field, the value."""
    registers: list[tuple[str, str, str]] = []
    if state.expected:
        registers.append(("expected", EXPECTED_FIELD, encode_expected(state.expected)))
    for phase, report in state.reports.items():
        registers.append(("report", f"{REPORT_PREFIX}{phase}", encode_mark(report)))
    for phase, endings in state.outcomes.items():
        for key, ending in endings.items():
            rule = "newest outcome" if key == TIMED else "earliest outcome"
            registers.append((rule, outcome_field(phase, key), encode_ending(ending)))
    for phase, times in state.invalidations.items():
        for essay, at_us in times.items():
            registers.append(("invalid", invalid_field(phase, essay), str(at_us)))
    for phase, recorded in state.definitions.items():
        for definition, at_us in recorded.items():
            registers.append(("definition", definition_field(phase, definition), str(at_us)))
    return registers
