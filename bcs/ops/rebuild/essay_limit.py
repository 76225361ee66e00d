"""Finds events that the service refused because the batch would have had too many essays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bcs.domain.history import FactsRecorded
from bcs.domain.state import delta_of
from bcs.errors import BatchErased

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive


class EssayLimit:
    """Counts the essays of batches during a rebuild.

    :param most: how many essays a batch may have.
    """

    def __init__(self, archive: PostgresArchive, most: int) -> None:
        self._archive = archive
        self._most = most
        # An upper bound, because an essay may be named many times. The exact essays are read only for a batch whose
        # bound is above the limit.
        self._named: Counter[str] = Counter()
        self._essays: dict[str, set[str]] = {}

    async def has_room_for(self, entry: FactsRecorded, write_pending: Callable[[], Awaitable[None]]) -> bool:
        """True if the batch has room for the essays of an entry; then these essays count as known.

        :param write_pending: writes the accepted entries that are still pending to the archive.
        :raises StoreUnavailable: the archive does not answer.
        """
        named, batch_id = delta_of(entry.facts).first_seen_us.keys(), entry.batch_id
        self._named[batch_id] += len(named)
        if self._named[batch_id] <= self._most:
            return True
        if batch_id not in self._essays:
            await write_pending()
            try:
                self._essays[batch_id] = set((await self._archive.state(batch_id)).first_seen_us)
            except BatchErased:
                return True  # the archive drops the entry
        essays = self._essays[batch_id]
        if not named <= essays and len(named | essays) > self._most:
            return False
        essays.update(named)
        return True
