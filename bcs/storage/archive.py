"""The archive: PostgreSQL, and the queues in Redis before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bcs.errors import StoreUnavailable
from bcs.storage.redis.archive_queue import ArchiveQueue

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive


# If no entry of the former release was seen for this time, no replica of that release counts as running.
_UPGRADE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Archive:
    """The archive behind the state store.

    :param backlog: the queue of facts that wait for PostgreSQL.
    :param explanations: the queue of entries that only explain announcements. No answer depends on these.
    """

    postgres: PostgresArchive
    backlog: ArchiveQueue
    explanations: ArchiveQueue

    def can_answer_for_redis(self, error: StoreUnavailable) -> bool:
        """True if PostgreSQL can answer instead of Redis: it is reachable, and no facts wait for it."""
        return error.store == "redis" and self.postgres.reachable and self._nothing_waits

    @property
    def _nothing_waits(self) -> bool:
        # During an upgrade a replica of the former release may add facts that PostgreSQL still lacks.
        return self.backlog.last_known == 0 and self.backlog.former_idle_seconds >= _UPGRADE_SECONDS
