"""Reads the history of a batch page by page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bcs.domain.history import KeptEntry
from bcs.domain.state import BatchState


class HistoryReader(Protocol):
    """What there is to read in a record. `PostgresArchive` has it."""

    async def state(self, batch_id: str) -> BatchState:
        """Everything on record of a batch.

        :raises StoreUnavailable: no answer, and never a guess.
        """
        ...

    async def history(self, batch_id: str, *, before: int | None = None, limit: int) -> list[KeptEntry]:
        """A page of a batch's history, newest first.

        :param before: only entries with lower numbers than this.
        :param limit: at most so many, and fewer where they are large.
        :raises StoreUnavailable: no answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Some entries in a row, newest first.

    :param continues_before: the number before which the next page begins; None when nothing is older.
    """

    entries: tuple[KeptEntry, ...]
    continues_before: int | None


async def read_page(record: HistoryReader, batch_id: str, *, before: int | None, limit: int) -> HistoryPage | None:
    """A page of a batch's history; None when nothing at all is on record of the batch.

    What is added between two pages has higher numbers than either, so that it neither repeats nor displaces anything.

    :param before: only entries with lower numbers than this.
    :param limit: at most so many.
    :raises StoreUnavailable: no answer.
    """
    kept = await record.history(batch_id, before=before, limit=limit + 1)
    if not kept and not await _is_known(record, batch_id, before):
        return None
    entries = tuple(kept[:limit])
    if len(kept) > limit:
        return HistoryPage(entries, entries[-1].number)
    # Fewer than asked for: because there are no more, or because these are large.
    older = entries and await record.history(batch_id, before=entries[-1].number, limit=1)
    return HistoryPage(entries, entries[-1].number if older else None)


async def _is_known(record: HistoryReader, batch_id: str, before: int | None) -> bool:
    # A batch may have facts without a history, and a history without facts.
    if before is not None and await record.history(batch_id, limit=1):
        return True
    return not (await record.state(batch_id)).empty
