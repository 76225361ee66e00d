"""Backfills a batch in Redis from the archive, because Redis may have lost data."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bcs.domain.slices import Sliced
from bcs.domain.state import BatchState
from bcs.errors import StoreRefused, StoreUnavailable
from bcs.storage.pace import paced
from bcs.storage.ports import ArchivePort


@dataclass(frozen=True, slots=True)
class Backfilled:
    """A batch's state in the archive.

    :param stamp: the complete stamp for the copy in Redis; None if facts may still wait for the archive, if Redis
        reports no identity, or if the archive refused facts.
    :param counted: False if Redis did not say how many facts wait. In a cluster, the server with the batch's queue may
        be away, and the server with the batch not.
    """

    state: BatchState
    stamp: str | None
    counted: bool = True


@dataclass(frozen=True, slots=True)
class ArchiveBackfill:
    """Reads a batch from the archive, and decides whether the copy in Redis is complete.

    After a backfill the copy in Redis gets a complete stamp: the identity of that Redis, and the identity of the
    archive's tables. Redis may lose acknowledged data in a restart or a failover, and so may an archive that is
    restored or created again. Then the identity changes, the stamp is not valid any more, and the next read backfills
    the batch again. A Redis that does not report its identity may be another server at any time, so its copies are
    never complete.

    The identity of Redis is always that of the server from which the copy was read; see `bcs.storage.redis.identity`.

    :param archive: the archive.
    :param waiting: returns how many entries of all replicas wait for the archive that may be about a batch.
    :param oldest_seconds: returns how long the oldest of these entries has waited, and 0 if none waits. None for
        commands, which read no queue: they do not notice facts that a failover lost while they wait for the archive.
    """

    archive: ArchivePort
    waiting: Callable[[str], Awaitable[int]]
    oldest_seconds: Callable[[str], Awaitable[float]] | None = None
    clock: Callable[[], float] = time.monotonic
    # When a copy of another Redis was first read from each Redis.
    _first_reads: dict[str, float] = field(default_factory=dict, init=False)

    def is_complete(self, stamp: str | None, redis: str) -> bool:
        """True if the copy in Redis is known to be complete.

        Before the first probe the archive has no identity. Until then only the identity of Redis is compared.

        :param redis: the identity of the server that the copy was read from; empty where the server does not report
            one.
        """
        required = self.required_stamp(redis)
        return stamp is not None and required is not None and stamp.startswith(required)

    def required_stamp(self, redis: str) -> str | None:
        """How a valid complete stamp begins; None where no stamp can be valid.

        :param redis: as for `is_complete`.
        """
        return f"{redis}/{self.archive.identity or ''}" if redis else None

    def ensure_same_redis(self, stamp: str | None, redis: str) -> None:
        """Refuse to answer from a copy with the stamp of another Redis, while the archive is unreachable.

        :param redis: as for `is_complete`.
        :raises StoreUnavailable: the copy has the stamp of another Redis, or this Redis does not report its identity.
        """
        if not redis:
            raise StoreUnavailable("postgresql", "Redis does not report its identity, and may lack facts of the batch")
        if stamp is not None and stamp.partition("/")[0] != redis:
            raise StoreUnavailable("postgresql", "Redis has changed, and may lack facts of the batch")

    async def backfill(self, batch_id: str, known: BatchState, redis: str) -> Backfilled | None:
        """Read a batch from the archive, and add to the archive the facts that only Redis has.

        :param known: the copy in Redis. It may have facts from a time without an archive.
        :param redis: the identity of the server that the copy was read from; empty where the server does not report
            one.
        :returns: None while the archive is unreachable.
        """
        if not self.archive.reachable:
            return None
        stamp = self.required_stamp(redis)
        try:
            # The queue is counted before the read, because an entry leaves the queue only once the archive has it.
            waiting = await self._count_waiting(batch_id)
            archived = await self.archive.state(batch_id)
            missing = await paced(_missing_in(archived, known))
            if not missing.empty:
                try:
                    await self.archive.add_states({batch_id: missing})
                except StoreRefused:
                    stamp = None
        except StoreUnavailable:
            return None
        return Backfilled(archived, stamp if waiting == 0 else None, counted=waiting is not None)

    async def _count_waiting(self, batch_id: str) -> int | None:
        try:
            return await self.waiting(batch_id)
        except StoreUnavailable:
            return None

    async def complete(
        self, batch_id: str, known: BatchState, stamp: str | None, redis: str
    ) -> tuple[BatchState, str | None]:
        """Make a copy of a batch complete, or decide that the copy is enough while the archive is unreachable.

        :param known: the copy in Redis. It gets the facts that only the archive has.
        :param stamp: the complete stamp of the copy.
        :param redis: as for `is_complete`.
        :returns: the facts that the copy got, and the complete stamp if the copy is complete now.
        :raises StoreUnavailable: the copy may lack facts; the archive is unreachable, or Redis does not say what waits.
        """
        if self.is_complete(stamp, redis):
            return BatchState(), stamp
        if self.archive.reachable and stamp is not None and stamp.partition("/")[0] != redis:
            await self._ensure_no_older_fact_waits(batch_id, redis)
        backfilled = await self.backfill(batch_id, known, redis)
        if backfilled is None:
            self.ensure_same_redis(stamp, redis)
            self.require_registered(known.expected is not None)
            return BatchState(), None
        if not backfilled.counted and redis and stamp is not None and stamp.partition("/")[0] != redis:
            # What waits for the archive is in the copy, too, unless Redis has lost it.
            raise StoreUnavailable("redis", "it does not say which facts wait, and may have lost them in this copy")
        return await paced(known.merging(backfilled.state)), backfilled.stamp

    async def _ensure_no_older_fact_waits(self, batch_id: str, redis: str) -> None:
        """Refuse while facts wait that are older than this Redis.

        It may have lost them in a failover, and the archive does not have them yet. Facts that came later were
        committed to this Redis.

        :raises StoreUnavailable: such facts wait, or nobody says how long facts have waited.
        """
        if self.oldest_seconds is None:
            return
        first_read = self._first_reads.setdefault(redis, self.clock())
        oldest_seconds = await self.oldest_seconds(batch_id)
        if oldest_seconds and oldest_seconds >= self.clock() - first_read:
            raise StoreUnavailable("postgresql", "facts wait for it that this Redis may lack: they are older")

    def require_registered(self, registered: bool) -> None:
        """Refuse to answer from Redis alone for a batch that is not registered there, while the archive is unreachable.

        Redis may have lost nearly all facts of such a batch, and the rest would look complete. Example: one
        spellchecked essay of a batch for which thirty essays were registered.

        :raises StoreUnavailable: the batch is not registered in Redis.
        """
        if not registered:
            raise StoreUnavailable("postgresql", "Redis may lack facts of the batch")


def _missing_in(archived: BatchState, known: BatchState) -> Sliced[BatchState]:
    backfilled = yield from archived.copying()
    missing = yield from backfilled.merging(known)
    # Each list goes with its outcome: the archive may have deleted the expired batch, and a list alone means nothing.
    for phase, by_key in missing.outcome_marks.items():
        for key in by_key:
            missing.outcomes.setdefault(phase, {}).setdefault(key, known.outcomes[phase][key])
    return missing
