"""The permanent record, together with what waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bcs.errors import StoreUnavailable
from bcs.storage.redis.archive_queue import RedisBacklog

if TYPE_CHECKING:
    # It takes the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresRecord


@dataclass(frozen=True, slots=True)
class Permanent:
    """The permanent record behind the store.

    :param backlog: what waits for it in Redis.
    :param explanations: what waits there too, and only explains announcements: no answer lacks it.
    """

    record: PostgresRecord
    backlog: RedisBacklog
    explanations: RedisBacklog

    def can_answer_for_redis(self, error: StoreUnavailable) -> bool:
        """Whether the record can answer instead of a store that could not: it must be there, and lack nothing."""
        return error.store == "redis" and self.record.reachable and self.backlog.last_known == 0
