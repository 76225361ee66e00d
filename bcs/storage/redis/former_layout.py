"""Batches that a release before 0.3.0 wrote, in two hashes and as layout 2.

A batch is taken over when it is read for the first time; a commit before that adds to the new hash alone. Such data
lives no longer than `BCS_REDIS_TTL_SECONDS` after the upgrade, so a later release can delete this module.
"""

from __future__ import annotations

from collections.abc import Sequence

from bcs.domain.columns import NO_MARK, mark_number
from bcs.domain.facts import Outcome
from bcs.domain.slices import Sliced, in_slices
from bcs.storage.redis.batch_codec import SLOT_PREFIX, SLOTS_FIELD, STAMP_FIELD, essay_field

_NUMBER_BYTES, _MARK_BYTES = 8, 9
_VERSION = b"version"
# `whole` is the field of releases before 0.2.0. Both stamps begin with the version that they hold for.
_STAMPS = frozenset((b"complete_stamp", b"whole"))
_OUTCOMES = {outcome.encode(): outcome for outcome in Outcome}


def converting_former(registers: Sequence[bytes], essays: Sequence[bytes]) -> Sliced[list[bytes]]:
    """The fields and values of the new hash for a batch in the former layout, in turns; empty where there is none.

    :param registers: the fields and values of the hash without essays.
    :param essays: the fields and values of the hash with the essays.
    :raises ValueError, KeyError: BCS did not write these values.
    """
    fields: list[bytes] = []
    slots = 0
    named = dict(zip(registers[::2], registers[1::2], strict=True))
    version = named.pop(_VERSION, b"")
    for name, value in named.items():
        if name not in _STAMPS:
            fields += (name, value)
            slots += name.startswith(SLOT_PREFIX.encode())
        elif value.startswith(version + b" "):
            # Without the archive's part the batch does not count as complete, but still names the Redis that it was
            # written to.
            fields += (STAMP_FIELD.encode(), value.removeprefix(version + b" ").partition(b"/")[0])
    for some in in_slices(zip(essays[::2], essays[1::2], strict=True)):
        for essay_id, row in some:
            fields += (essay_field(essay_id.decode()), _row_of_former(row))
        yield
    if fields:
        fields += (SLOTS_FIELD.encode(), str(slots).encode())
    return fields


def _row_of_former(row: bytes) -> bytes:
    """A former row: eight bytes for the time when the essay was first seen, and nine for each mark."""
    if len(row) < _NUMBER_BYTES or (len(row) - _NUMBER_BYTES) % _MARK_BYTES:
        raise ValueError(f"a row of {len(row)} bytes")
    numbers = [int.from_bytes(row[:_NUMBER_BYTES], "big")]
    for start in range(_NUMBER_BYTES, len(row), _MARK_BYTES):
        outcome, at_us = row[start : start + 1], int.from_bytes(row[start + 1 : start + _MARK_BYTES], "big")
        numbers.append(NO_MARK if outcome == b"-" else mark_number(_OUTCOMES[outcome], at_us))
    return b"".join(number.to_bytes(_NUMBER_BYTES, "big") for number in numbers)
