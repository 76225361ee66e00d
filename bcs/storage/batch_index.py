"""The order in which batches are found: by their last change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

WINDOW_US: Final = 10_000_000
"""A batch that changes again changes its place once in so many microseconds at most, because an index is written for
that. So the place of a batch is at most this much older than its last change."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """The place of a batch in an index.

    :param at_us: in microseconds since 1970 UTC.
    """

    at_us: int
    batch_id: str


@dataclass(frozen=True, slots=True)
class IndexedBatch:
    """A batch in an index.

    :param changed_at_us: the last change, in microseconds since 1970 UTC.
    """

    place: Place
    changed_at_us: int


@dataclass(frozen=True, slots=True)
class Scan:
    """Consecutive batches of an index.

    :param ended: True if there are no more.
    :param now_us: the time of the scan by the clock that gives batches their places.
    """

    batches: Sequence[IndexedBatch]
    ended: bool
    now_us: int


class BatchIndex(Protocol):
    """Finds batches by their last change. May have batches that have expired meanwhile."""

    async def before(self, place: Place | None, *, lowest_us: int, limit: int) -> Scan:
        """Batches before a place, the last changed first.

        :param place: None to begin with the last changed batch.
        :param lowest_us: no batch with an earlier place.
        :raises StoreUnavailable: no answer.
        """
        ...

    async def after(self, place: Place, *, limit: int) -> Scan:
        """Batches after a place, the last changed last.

        :raises StoreUnavailable: no answer.
        """
        ...

    async def forget(self, batch_id: str) -> None:
        """Remove an erased batch. A process that has noted it before may write it once more.

        :raises StoreUnavailable: whether it is removed is unknown.
        """
        ...
