"""Finds batches by their last change and by how they stand, page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import anyio

from bcs.domain.finding import Condition, Criteria, conditions_of
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary, summarizing
from bcs.errors import BatchErased, StoreCorrupted, StoreError
from bcs.storage.batch_index import WINDOW_US, BatchIndex, IndexedBatch, Place, Scan
from bcs.storage.pace import paced
from bcs.storage.ports import ArchivePort

MOST_SCANNED = 1000
"""How many batches a page looks at."""

_SCANNED_AT_A_TIME = 100
# Fewer than the connections to PostgreSQL, so that other calls get one.
_CHECKED_AT_A_TIME = 4
# A write may become visible so long after the time that it gave to its batch.
_MARGIN_US = 5_000_000
# The approximate sizes in an answer, without the id.
_BATCH_BYTES, _PHASE_BYTES = 300, 150


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page begins.

    The pages go from the last changed batch to the first. A batch that changes meanwhile leaves its place, so at the
    end come all that have changed since the beginning.

    :param direction: `back` through the places, then `on` through those that came meanwhile.
    :param place: the last place that was looked at.
    :param began_us: when the first page was read, by the clock of the index.
    """

    direction: Literal["back", "on"]
    place: Place
    began_us: int


@dataclass(frozen=True, slots=True)
class FoundBatch:
    """A batch that meets the criteria.

    :param changed_at_us: its last change, in microseconds since 1970 UTC.
    :param phases: the phases that count.
    """

    batch_id: str
    changed_at_us: int
    summary: BatchSummary
    conditions: Sequence[Condition]
    phases: Sequence[str]


@dataclass(frozen=True, slots=True)
class FoundBatches:
    """A page.

    :param unreadable: batches whose stored facts can't be read.
    :param scanned: how many batches this page looked at.
    :param following: where the next page begins; None after the last one.
    """

    batches: Sequence[FoundBatch]
    unreadable: Sequence[str]
    scanned: int
    following: Cursor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFinder:
    """Reads pages of an index, and checks each batch by its summary.

    :param source: the name of the store that answers.
    :param summary: the summary of a batch under a law, unknown for one that has expired.
    :param seconds: no page looks at more batches after this time.
    :param page_bytes: the approximate size of a page.
    """

    index: BatchIndex
    source: str
    summary: Callable[[str], Awaitable[BatchSummary]]
    law: CompletionLaw
    seconds: float
    page_bytes: int

    async def find(
        self, criteria: Criteria, *, limit: int, cursor: Cursor | None, most_scanned: int = MOST_SCANNED
    ) -> FoundBatches:
        """A page. One with no batch is not the last unless it says so.

        A batch that meets the criteria all the time is on one page at least, also if it changes meanwhile.

        :param limit: how many batches the page has at most.
        :param cursor: None to begin.
        :param most_scanned: how many batches the page looks at, at most.
        :raises StoreUnavailable: no answer, and never a guess.
        """
        page = _Page(limit, most_scanned, self.page_bytes, anyio.current_time() + self.seconds)
        first = cursor is None
        while True:
            scan = await self._scan(criteria, cursor)
            began_us = scan.now_us if cursor is None else cursor.began_us
            direction = cursor.direction if cursor else "back"
            left_us = began_us - _MARGIN_US if direction == "on" else None
            batches = [one for one in scan.batches if left_us is None or one.changed_at_us >= left_us]
            for start in range(0, len(batches), _CHECKED_AT_A_TIME):
                group = batches[start : start + _CHECKED_AT_A_TIME]
                for batch, found in zip(group, await self._check(group, criteria, scan.now_us), strict=True):
                    page.add(batch, found)
                    if page.full:
                        return page.ending(Cursor(direction, batch.place, began_us))
            if scan.batches:
                cursor = Cursor(direction, scan.batches[-1].place, began_us)
            if scan.ended or not scan.batches:
                # One scan shows all batches at one time, so none of them was left out.
                if first or cursor is None or direction == "on" or _ended(criteria, began_us):
                    return page.ending(None)
                cursor = Cursor("on", Place(began_us - _MARGIN_US - WINDOW_US, ""), began_us)
            first = False
            if page.late:
                return page.ending(cursor)

    async def _scan(self, criteria: Criteria, cursor: Cursor | None) -> Scan:
        if cursor is not None and cursor.direction == "on":
            return await self.index.after(cursor.place, limit=_SCANNED_AT_A_TIME)
        place = cursor.place if cursor else None
        if place is None and criteria.until_us is not None:
            place = Place(criteria.until_us + 1, "")
        lowest_us = 0 if criteria.since_us is None else criteria.since_us - WINDOW_US
        return await self.index.before(place, lowest_us=lowest_us, limit=_SCANNED_AT_A_TIME)

    async def _check(
        self, batches: Sequence[IndexedBatch], criteria: Criteria, now_us: int
    ) -> list[FoundBatch | StoreCorrupted | None]:
        """Check batches at the same time, so that their commands share round trips."""
        checked: dict[int, FoundBatch | StoreCorrupted | None] = {}
        failures: list[StoreError] = []

        async def check(number: int, batch: IndexedBatch) -> None:
            try:
                checked[number] = await self._found(batch, criteria, now_us)
            except BatchErased:
                checked[number] = None
                with suppress(StoreError):  # else the next reader removes it
                    await self.index.forget(batch.place.batch_id)
            except StoreCorrupted as error:
                checked[number] = error
            except StoreError as error:
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            for number, batch in enumerate(batches):
                tasks.start_soon(check, number, batch)
        if failures:
            raise failures[0]
        return [checked[number] for number in range(len(batches))]

    async def _found(self, batch: IndexedBatch, criteria: Criteria, now_us: int) -> FoundBatch | None:
        summary = await self.summary(batch.place.batch_id)
        if summary.unknown:
            return None  # it has expired, or somebody only asked for it
        changed_at_us = batch.changed_at_us
        conditions = conditions_of(summary, self.law, criteria, changed_at_us=changed_at_us, now_us=now_us)
        if not criteria.are_met_by(summary, conditions, changed_at_us):
            return None
        phases = tuple(summary.progress) if criteria.phases is None else criteria.phases
        return FoundBatch(batch.place.batch_id, changed_at_us, summary, conditions, phases)


def archived_summaries(archive: ArchivePort, law: CompletionLaw) -> Callable[[str], Awaitable[BatchSummary]]:
    """Makes summaries from the archive alone: to find old batches must not bring them back into Redis."""

    async def summary(batch_id: str) -> BatchSummary:
        return await paced(summarizing(await archive.state(batch_id), law, 0))

    return summary


def _ended(criteria: Criteria, began_us: int) -> bool:
    """True if a batch that changes meanwhile does not meet the criteria any more."""
    return criteria.until_us is not None and criteria.until_us < began_us - _MARGIN_US


class _Page:
    """A page that is being read.

    :param limit: how many batches it has at most.
    :param most_scanned: how many batches it looks at, at most.
    :param most_bytes: its approximate size.
    :param late_at: when it takes no further scan, by the clock of anyio.
    """

    def __init__(self, limit: int, most_scanned: int, most_bytes: int, late_at: float) -> None:
        self._limit = limit
        self._most_scanned = most_scanned
        self._bytes_left = most_bytes
        self._late_at = late_at
        self._batches: list[FoundBatch] = []
        self._unreadable: list[str] = []
        self._scanned = 0

    def add(self, batch: IndexedBatch, found: FoundBatch | StoreCorrupted | None) -> None:
        """Add a batch that was looked at."""
        self._scanned += 1
        if isinstance(found, FoundBatch):
            self._batches.append(found)
            self._bytes_left -= len(found.batch_id.encode()) + _BATCH_BYTES + _PHASE_BYTES * len(found.phases)
        elif found is not None:
            self._unreadable.append(batch.place.batch_id)
            self._bytes_left -= len(batch.place.batch_id.encode()) + _BATCH_BYTES

    @property
    def full(self) -> bool:
        """True if no further batch has room."""
        listed = len(self._batches) + len(self._unreadable)
        return listed >= self._limit or self._bytes_left <= 0 or self._scanned >= self._most_scanned or self.late

    @property
    def late(self) -> bool:
        """True if the page must end now."""
        return anyio.current_time() >= self._late_at

    def ending(self, following: Cursor | None) -> FoundBatches:
        """The page."""
        return FoundBatches(self._batches, self._unreadable, self._scanned, following)
