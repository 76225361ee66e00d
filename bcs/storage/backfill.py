"""Fills a batch in Redis up with what the archive has: Redis may have lost something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bcs.domain.slices import Sliced
from bcs.domain.state import BatchState
from bcs.errors import StoreRefused, StoreUnavailable
from bcs.storage.pace import paced
from bcs.storage.ports import Record


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What the archive has of a batch.

    :param stamp: the complete stamp; None where facts may still wait for the archive.
    """

    state: BatchState
    stamp: str | None


@dataclass(frozen=True, slots=True)
class ArchiveBackfill:
    """Reads a batch from the archive, and says whether the copy in Redis is complete.

    After a backfill the copy in Redis gets a complete stamp: the identity of that Redis, and that of the archive's
    tables. After a restart or a failover Redis may have less than it had acknowledged, and so may an archive that was
    restored or made anew. Then the identity differs, the stamp is no longer valid, and the next read of the batch is
    backfilled again. A Redis that does not tell its identity may be another server at any time: its copies are never
    complete.

    The identity of Redis is always that of the server from which the copy was read; see `bcs.storage.redis.identity`.

    :param waiting: asks how many entries of all replicas wait for the archive.
    """

    record: Record
    waiting: Callable[[], Awaitable[int]]

    def is_complete(self, stamp: str | None, redis: str) -> bool:
        """True if the copy in Redis is known to be complete.

        An archive that was never reached has no identity yet; then the identity of Redis decides alone.

        :param redis: the identity of the server that the copy was read from; empty where the server does not tell.
        """
        if stamp is None or not redis:
            return False
        stamped, names_archive, archive = stamp.partition("/")
        return stamped == redis and bool(names_archive) and self.record.identity in (archive, None)

    def ensure_same_redis(self, stamp: str | None, redis: str) -> None:
        """Refuse to answer from a copy that another Redis wrote, while the archive is away.

        :param redis: as for `is_complete`.
        :raises StoreUnavailable: the copy is stamped by another Redis, or this Redis does not tell its identity.
        """
        if not redis:
            raise StoreUnavailable(
                "postgresql", "Redis has no known identity, and only the archive knows what may be missing in it"
            )
        if stamp is not None and stamp.partition("/")[0] != redis:
            raise StoreUnavailable(
                "postgresql",
                "Redis is another server than before, and only the archive knows what may be missing in it",
            )

    async def backfill(self, batch_id: str, known: BatchState, redis: str) -> Backfilled | None:
        """Read a batch from the archive, and give the archive what only Redis has; None while the archive is away.

        :param known: the copy in Redis. It may have facts from a time when there was no archive.
        :param redis: the identity of the server that the copy was read from; empty where the server does not tell.
        """
        if not self.record.reachable:
            return None
        stamp = f"{redis}/{self.record.identity}" if redis else None
        try:
            # In this order: an entry leaves the queue only once the archive has it.
            waiting = await self.waiting()
            recorded = await self.record.state(batch_id)
            missing = await paced(_missing_in(recorded, known))
            if not missing.empty:
                await self.record.add_states({batch_id: missing})
        except StoreUnavailable:
            return None
        except StoreRefused:
            return Backfilled(recorded, None)
        return Backfilled(recorded, None if waiting else stamp)

    async def complete(
        self, batch_id: str, known: BatchState, stamp: str | None, redis: str
    ) -> tuple[BatchState, str | None]:
        """Make a copy of a batch complete, or decide that the copy is enough while the archive is away.

        :param known: the copy in Redis. It gets the facts that only the archive has.
        :param stamp: the complete stamp of the copy.
        :param redis: as for `is_complete`.
        :returns: the facts that the copy got, and the complete stamp if the copy is complete now.
        :raises StoreUnavailable: the archive is away, and the copy may be a part of the batch.
        """
        if self.is_complete(stamp, redis):
            return BatchState(), stamp
        backfilled = await self.backfill(batch_id, known, redis)
        if backfilled is None:
            self.ensure_same_redis(stamp, redis)
            self.require_registered(known.expected is not None)
            return BatchState(), None
        return await paced(known.merging(backfilled.state)), backfilled.stamp

    def require_registered(self, registered: bool) -> None:
        """Refuse to answer from Redis alone for a batch that is not registered there, while the archive is away.

        Redis may have forgotten nearly all of such a batch, and the rest would look complete: one spellchecked essay,
        where thirty were registered.

        :raises StoreUnavailable: the batch is not registered in Redis.
        """
        if not registered:
            raise StoreUnavailable("postgresql", "only the archive knows the whole history of the batch")


def _missing_in(recorded: BatchState, known: BatchState) -> Sliced[BatchState]:
    backfilled = yield from recorded.copying()
    missing = yield from backfilled.merging(known)
    # The archive may delete the batch before it gets these facts, and a list means nothing without its outcome.
    for phase, by_key in missing.outcome_marks.items():
        for key in by_key:
            missing.outcomes.setdefault(phase, {}).setdefault(key, known.outcomes[phase][key])
    return missing
