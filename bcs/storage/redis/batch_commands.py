"""The Redis commands that read and write a batch, and the decoding of their replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bcs.domain.law import CompletionLaw
from bcs.domain.progress import summarizing
from bcs.domain.slices import Sliced, in_slices
from bcs.domain.state import TIMED, BatchState
from bcs.errors import StoreCorrupted
from bcs.storage.redis.batch_codec import (
    COMPLETE_STAMP_FIELD,
    EXPECTED_FIELD,
    FORMER_STAMP_FIELD,
    REPORT_PREFIX,
    SLOT_PREFIX,
    VERSION_FIELD,
    BatchKeys,
    Slot,
    decoding_state,
    encode_ending,
    encode_essay_mark,
    encode_expected,
    encode_joined,
    encode_listed,
    encode_mark,
    encode_summary,
    encoding_essays,
    former_stamp,
    invalid_field,
    outcome_field,
    slot_name,
    slots_in,
)
from bcs.storage.redis.commands import Command
from bcs.storage.redis.merge_script import MERGE_SCRIPT

# Packing a longer command would block the event loop.
_FIELDS_PER_COMMAND = 1000


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch as it was read from Redis.

    :param slots: the slots of the essays' rows, in their order.
    :param stamp: the complete stamp, see `ArchiveBackfill`; None where the batch has none, or one of an older version.
    :param redis: the identity of the server that the batch was read from; empty where the server does not report one.
    """

    state: BatchState
    version: int
    slots: list[Slot]
    stamp: str | None
    redis: str


def reads(keys: BatchKeys) -> list[Command]:
    """The commands that read a batch; `decoding` takes their replies."""
    return [("HGETALL", keys.meta), ("HGETALL", keys.essays)]


def watch(keys: BatchKeys) -> list[Command]:
    """The commands that watch and read a batch; `decoding` takes all replies but the first."""
    # If the batch expires between these reads, they return a part of it. Then EXEC fails, because expiry is a change.
    return [("WATCH", *keys.all), *reads(keys)]


def decoding(keys: BatchKeys, replies: Sequence[Any], redis: str) -> Sliced[StoredBatch]:
    """A batch from the replies to `reads`.

    :param redis: the identity of the server that sent the replies.
    :raises StoreCorrupted: BCS did not write these values.
    """
    try:
        texts = [item.decode() for item in replies[0]]
        meta = dict(zip(texts[::2], texts[1::2], strict=True))
        slots, version = slots_in(meta), int(meta.get(VERSION_FIELD, 0))
    except ValueError as error:
        raise StoreCorrupted(keys.meta, str(error)) from None
    stamp = _stamp_in(meta, COMPLETE_STAMP_FIELD, version) or former_stamp(_stamp_in(meta, FORMER_STAMP_FIELD, version))
    state = yield from decoding_state(keys, meta, slots, replies[1])
    return StoredBatch(state, version, slots, stamp, redis)


def encoding(
    keys: BatchKeys,
    stored: StoredBatch,
    changed: BatchState,
    version: int,
    ttl_ms: int,
    stamp: str | None,
    law: CompletionLaw,
) -> Sliced[list[Command]]:
    """The commands that write the changed registers and the summary.

    :param stored: the batch with the changes merged in.
    :param ttl_ms: how long the batch is kept from now on, in milliseconds.
    :param stamp: the complete stamp; None where something may be missing.
    :param law: the law of the summary. Summaries under other laws are deleted when the version changes.
    """
    stale: list[Command] = [("DEL", keys.summaries)] if version != stored.version else []
    summary = yield from summarizing(stored.state, law, version)
    changes = yield from _changes(keys, stored, changed, version, stamp)
    return [
        *stale,
        *changes,
        ("HSET", keys.summaries, law.fingerprint, encode_summary(summary, stamp)),
        # A transaction runs at one instant, so all keys of the batch expire at the same instant.
        *(("PEXPIRE", key, ttl_ms) for key in keys.all),
    ]


def merge(keys: BatchKeys, delta: BatchState, ttl_ms: int) -> Command:
    """The command that merges each register inside Redis, by the merge script."""
    registers: list[Command] = []
    if delta.expected:
        registers.append(("expected", EXPECTED_FIELD, "", encode_expected(delta.expected)))
    registers += [
        ("report", f"{REPORT_PREFIX}{phase}", "", encode_mark(report)) for phase, report in delta.reports.items()
    ]
    registers += [
        ("newest outcome" if key == TIMED else "earliest outcome", outcome_field(phase, key), "", encode_ending(ending))
        for phase, endings in delta.outcomes.items()
        for key, ending in endings.items()
    ]
    registers += [
        ("invalid", invalid_field(phase, essay), "", str(at_us))
        for phase, times in delta.invalidations.items()
        for essay, at_us in times.items()
    ]
    registers += [("joined", essay, "", encode_joined(since)) for essay, since in delta.first_seen_us.items()]
    registers += [
        ("mark", essay, slot_name((phase, TIMED)), encode_essay_mark(mark))
        for phase, marks in delta.essay_marks.items()
        for essay, mark in marks.items()
    ]
    registers += [
        ("mark", essay, slot_name((phase, key)), encode_listed(outcome))
        for phase, by_key in delta.outcome_marks.items()
        for key, listed in by_key.items()
        for essay, outcome in listed.items()
    ]
    return ("EVAL", MERGE_SCRIPT, len(keys.all), *keys.all, ttl_ms, *chain.from_iterable(registers))


def _stamp_in(meta: Mapping[str, str], field: str, version: int) -> str | None:
    # A writer that does not know the archive, or knows the other field, leaves an older version here.
    stamped, _, stamp = meta.get(field, "").partition(" ")
    return stamp if stamped == str(version) else None


def _changes(
    keys: BatchKeys, stored: StoredBatch, changed: BatchState, version: int, stamp: str | None
) -> Sliced[list[Command]]:
    fields = {VERSION_FIELD: str(version)}
    if stamp is not None:
        fields[COMPLETE_STAMP_FIELD] = f"{version} {stamp}"
    if changed.expected:
        fields[EXPECTED_FIELD] = encode_expected(changed.expected)
    fields |= {f"{REPORT_PREFIX}{phase}": encode_mark(report) for phase, report in changed.reports.items()}
    for phase, endings in changed.outcomes.items():
        fields |= {outcome_field(phase, key): encode_ending(ending) for key, ending in endings.items()}
    for phase, times in changed.invalidations.items():
        fields |= {invalid_field(phase, essay): str(at_us) for essay, at_us in times.items()}
    listed = {(phase, key): essays for phase, by_key in changed.outcome_marks.items() for key, essays in by_key.items()}
    slots = list(stored.slots)
    for slot in sorted({(phase, TIMED) for phase in changed.essay_marks} | listed.keys()):
        if slot not in stored.slots:
            fields[f"{SLOT_PREFIX}{slot_name(slot)}"] = str(len(slots))
            slots.append(slot)
    touched = changed.first_seen_us.keys() | set(chain(*changed.essay_marks.values(), *listed.values()))
    yield
    rows = yield from encoding_essays(stored.state, touched, slots)
    hashes: list[tuple[str, Mapping[str, str | bytes]]] = [(keys.meta, fields), (keys.essays, rows)]
    return [
        ("HSET", key, *chain.from_iterable(some))
        for key, entries in hashes
        for some in in_slices(entries.items(), _FIELDS_PER_COMMAND)
    ]
