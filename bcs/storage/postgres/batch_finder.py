"""The index of the batches in the archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bcs.domain.times import EPOCH, datetime_of, microseconds
from bcs.storage.batch_index import IndexedBatch, Place, Scan
from bcs.storage.postgres import sql as statements
from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.postgres.rows import from_text, to_text

_END = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ArchivedBatches:
    """A `BatchIndex` of all batches that the archive has."""

    gateway: ArchiveGateway

    async def before(self, place: Place | None, *, lowest_us: int, limit: int) -> Scan:
        """See `BatchIndex.before`."""
        start = (_END, "") if place is None else (_time(place.at_us), to_text(place.batch_id))
        return await self._scan(statements.CHANGED_BEFORE, (*start, _time(lowest_us)), limit)

    async def after(self, place: Place, *, limit: int) -> Scan:
        """See `BatchIndex.after`."""
        return await self._scan(statements.CHANGED_AFTER, (_time(place.at_us), to_text(place.batch_id)), limit)

    async def forget(self, batch_id: str) -> None:
        """See `BatchIndex.forget`: the row of an erased batch is no batch."""

    async def _scan(self, statement: str, arguments: Sequence[Any], limit: int) -> Scan:
        async def read(connection: Any) -> Any:
            return await connection.fetch(statement, *arguments, limit)

        rows = await self.gateway.run(read)
        batches = [
            IndexedBatch(
                Place(microseconds(row["listed_at"]), from_text(row["batch_id"])), microseconds(row["changed_at"])
            )
            for row in rows
        ]
        return Scan(batches, len(rows) < limit, microseconds(rows[0]["now"]) if rows else 0)


def _time(at_us: int) -> datetime:
    try:
        return datetime_of(at_us)
    except OverflowError:
        return EPOCH if at_us < 0 else _END
