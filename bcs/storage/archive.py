"""The archive: PostgreSQL, and the queues in Redis before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bcs.errors import StoreUnavailable
from bcs.storage.redis.archive_queue import ArchiveQueue

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive


@dataclass(frozen=True, slots=True)
class Archive:
    """The archive behind the state store.

    :param backlog: the queue of facts that wait for PostgreSQL.
    :param explanations: the queue of entries that only explain announcements; no answer depends on these.
    """

    postgres: PostgresArchive
    backlog: ArchiveQueue
    explanations: ArchiveQueue

    def can_answer_for_redis(self, error: StoreUnavailable) -> bool:
        """True if PostgreSQL can answer instead of Redis: it is reachable, and no facts wait for it."""
        return error.store == "redis" and self.postgres.reachable and self.backlog.last_known == 0
