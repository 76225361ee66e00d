"""What is kept of an erased batch."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass
from typing import Literal
from uuid import UUID

from bcs.errors import Tombstone

What = Literal["batch", "essays", "summaries", "facts", "history_entries", "waiting_entries", "waiting_dead_letters"]
"""What a store may have of a batch."""
LeftOver = Literal["events", "announcements", "dead_letters", "waiting_entries"]
"""What may be left of a batch."""


@dataclass(frozen=True, slots=True)
class ErasureRecorded:
    """An entry of the history: an operator erased the batch. The entry outlives the erased history.

    :param until_us: nothing about the batch is accepted before this time, in microseconds since 1970 UTC.
    """

    entry_id: UUID
    batch_id: str
    at_us: int
    _: KW_ONLY
    correlation_id: str
    erased_by: str
    reason: str
    until_us: int

    @property
    def tombstone(self) -> Tombstone:
        """The tombstone of this erasure."""
        return Tombstone(self.at_us, self.until_us, self.erased_by, self.reason)


def encode_tombstone(tombstone: Tombstone) -> str:
    """A tombstone as a short text, without a NUL."""
    return json.dumps([tombstone.at_us, tombstone.until_us, tombstone.erased_by, tombstone.reason])


def decode_tombstone(text: str | bytes) -> Tombstone:
    """The tombstone that `encode_tombstone` encoded.

    :raises ValueError: `encode_tombstone` did not write this text.
    """
    try:
        at_us, until_us, erased_by, reason = json.loads(text)
        return Tombstone(int(at_us), int(until_us), str(erased_by), str(reason))
    except TypeError as error:
        raise ValueError(f"not a tombstone: {error}") from None
