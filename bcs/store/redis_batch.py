"""How a batch is read from Redis and written there: the commands, and what their replies say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bcs.domain.errors import StoreCorrupted
from bcs.domain.state import BatchState
from bcs.domain.verdicts import summarize
from bcs.store.codec import (
    BATCH_MARK_PREFIX,
    EXPECTED_FIELD,
    SLOT_PREFIX,
    VERSION_FIELD,
    WHOLE_FIELD,
    BatchKeys,
    decode_state,
    encode_essay,
    encode_essay_mark,
    encode_expected,
    encode_joined,
    encode_mark,
    encode_summary,
    slots_in,
)
from bcs.store.merge_script import MERGE_SCRIPT
from bcs.store.multiplexer import Command


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch as it was read.

    :param slots: the phases in the essays' records, each in its slot.
    :param mark: of `Recall`, that nothing is missing; None where it has none, or one of an older version.
    """

    state: BatchState
    version: int
    slots: list[str]
    mark: str | None


def reads(keys: BatchKeys) -> list[Command]:
    """Read a batch; the replies go to `decode`."""
    return [("HGETALL", keys.meta), ("HGETALL", keys.essays)]


def watch(keys: BatchKeys) -> list[Command]:
    """Watch a batch and read it; the replies but the first go to `decode`."""
    # These reads can show half a batch, if it expires between them. Then EXEC fails: to expire counts as a change.
    return [("WATCH", *keys.all), *reads(keys)]


def decode(keys: BatchKeys, replies: Sequence[Any]) -> StoredBatch:
    """A batch from the replies to `reads`.

    :raises StoreCorrupted: something else wrote there.
    """
    try:
        texts = [item.decode() for item in replies[0]]
        meta = dict(zip(texts[::2], texts[1::2], strict=True))
        slots, version = slots_in(meta), int(meta.get(VERSION_FIELD, 0))
    except ValueError as error:
        raise StoreCorrupted(keys.meta, str(error)) from None
    # Who writes without the record leaves the older version there.
    marked, _, mark = meta.get(WHOLE_FIELD, "").partition(" ")
    return StoredBatch(
        decode_state(keys, meta, slots, replies[1]), version, slots, mark if marked == str(version) else None
    )


def writes(
    keys: BatchKeys, stored: StoredBatch, changed: BatchState, version: int, ttl_ms: int, mark: str | None
) -> list[Command]:
    """What changed, and the summary.

    :param stored: with the changes in it.
    :param ttl_ms: how long the batch is kept from now on.
    :param mark: that nothing is missing.
    """
    return [
        *_changes(keys, stored, changed, version, mark),
        # A transaction runs at one instant, so all keys of the batch expire at the same one.
        ("SET", keys.summary, encode_summary(summarize(stored.state, version), mark), "PX", ttl_ms),
        ("PEXPIRE", keys.meta, ttl_ms),
        ("PEXPIRE", keys.essays, ttl_ms),
    ]


def merge(keys: BatchKeys, delta: BatchState, ttl_ms: int) -> Command:
    """Merge each register where it lies, by the script."""
    registers: list[Command] = []
    if delta.expected:
        registers.append(("newest", EXPECTED_FIELD, "", encode_expected(delta.expected)))
    registers += [
        ("batch mark", f"{BATCH_MARK_PREFIX}{phase}", "", encode_mark(mark))
        for phase, mark in delta.batch_marks.items()
    ]
    registers += [("joined", essay, "", encode_joined(since)) for essay, since in delta.known_since_us.items()]
    registers += [
        ("mark", essay, phase, encode_essay_mark(mark))
        for phase, marks in delta.essay_marks.items()
        for essay, mark in marks.items()
    ]
    return ("EVAL", MERGE_SCRIPT, len(keys.all), *keys.all, ttl_ms, *chain.from_iterable(registers))


def _changes(
    keys: BatchKeys, stored: StoredBatch, changed: BatchState, version: int, mark: str | None
) -> list[Command]:
    fields = {VERSION_FIELD: str(version)}
    if mark is not None:
        fields[WHOLE_FIELD] = f"{version} {mark}"
    fields |= {f"{BATCH_MARK_PREFIX}{phase}": encode_mark(mark) for phase, mark in changed.batch_marks.items()}
    if changed.expected:
        fields[EXPECTED_FIELD] = encode_expected(changed.expected)
    slots = list(stored.slots)
    for phase in sorted(changed.essay_marks.keys() - set(slots)):
        fields[f"{SLOT_PREFIX}{phase}"] = str(len(slots))
        slots.append(phase)
    touched = changed.known_since_us.keys() | set(chain.from_iterable(changed.essay_marks.values()))
    records = {essay: encode_essay(stored.state, essay, slots) for essay in touched}
    hashes: list[tuple[str, Mapping[str, str | bytes]]] = [(keys.meta, fields), (keys.essays, records)]
    return [("HSET", key, *chain.from_iterable(entries.items())) for key, entries in hashes if entries]
