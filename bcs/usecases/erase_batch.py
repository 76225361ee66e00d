"""Erases a batch from all stores, and refuses what arrives about it for a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from bcs.actors.runtime import Runtime
from bcs.domain.erasure import ErasureRecorded, LeftOver, What
from bcs.domain.times import microseconds
from bcs.storage.archive import Archive
from bcs.storage.batch_index import BatchIndex
from bcs.storage.ports import POSTGRESQL, REDIS, ErasedCopy, Outbox, StateStore

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import ErasedRows

log = structlog.stdlib.get_logger("bcs.erasure", actor="http")


# Of the time for a request, for each of three queues: the stores need the rest.
_QUEUES_SHARE = 1 / 8
_EVENTS = "the topics of the platform have its events until Kafka removes them; BCS drops them when they are read again"
_ANNOUNCEMENTS = (
    "announcements of pruned phases that wait for Kafka are still published, because callers rely on them; they have "
    "the ids of the batch and of the requests, and nothing of the essays"
)
_DEAD_LETTERS = "a request does not read the dead-letter topics: `bcs batches erase` deletes or lists its dead letters"
_UNREAD = "could not be read to the end, and may have entries about the batch: erase it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseBatch:
    """A request to erase a batch.

    :param caller: the operator's name for the history.
    :param reason: the operator's reason.
    :param dry_run: True to count only; nothing is changed.
    """

    batch_id: str
    caller: str
    reason: str
    correlation_id: str
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """Something of the batch that was removed, or for a dry run would be.

    :param place: the store.
    """

    place: str
    what: What
    count: int


@dataclass(frozen=True, slots=True)
class Left:
    """Something that is left, or may be left, of the batch.

    :param why: the reason, and what to do about it.
    """

    what: LeftOver
    why: str


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased of a batch.

    :param removed: what was there; nothing that was not.
    """

    erasure: ErasureRecorded
    removed: tuple[Removed, ...]
    left: tuple[Left, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEraser:
    """Puts tombstones on a batch in all stores, and then deletes what they have of it.

    From the tombstones on, nobody can add anything to the batch. So what a crash has left is deleted by a repetition.

    :param store_name: the name of the state store in answers.
    """

    runtime: Runtime
    store: StateStore
    store_name: str
    archive: Archive | None
    outbox: Outbox
    index: BatchIndex

    async def erase(self, command: EraseBatch) -> Erased:
        """Erase a batch. When this returns, the erasure is durable in all stores.

        :raises StoreUnavailable: a store did not answer; the batch may be erased in part. A repetition erases the rest.
        """
        now_us = microseconds(self.runtime.now())
        erasure = ErasureRecorded(
            self.runtime.new_id(),
            command.batch_id,
            now_us,
            correlation_id=command.correlation_id,
            erased_by=command.caller,
            reason=command.reason,
            until_us=now_us + self.runtime.settings.erased_batches_seconds * 1_000_000,
        )
        erased = await self._erase(erasure, dry_run=command.dry_run)
        if not command.dry_run:
            log.warning(
                "batch_erased",
                batch_id=command.batch_id,
                erased_by=command.caller,
                reason=command.reason,
                correlation_id=command.correlation_id,
                removed={f"{each.place} {each.what}": each.count for each in erased.removed},
            )
        return erased

    async def _erase(self, erasure: ErasureRecorded, *, dry_run: bool) -> Erased:
        batch_id = erasure.batch_id
        postgres = self.archive.postgres if self.archive else None
        rows: ErasedRows | None = None
        if dry_run:
            copy = await self.store.erasable(batch_id)
        else:
            # The archive first: Redis, which may lose its tombstone, gets it from there again.
            if postgres:
                await postgres.refuse(erasure)
            copy = await self.store.erase(batch_id, erasure.tombstone)
            await self.index.forget(batch_id)
        # What waits would be dropped by the archive, or become a dead letter in Kafka.
        seconds = self.runtime.settings.request_deadline_seconds * _QUEUES_SHARE
        queues = (self.archive.backlog, self.archive.explanations) if self.archive else ()
        entries = [await queue.erase(batch_id, dry_run=dry_run, seconds=seconds) for queue in queues]
        dead_letters = await self.outbox.erase(batch_id, dry_run=dry_run, seconds=seconds)
        if postgres:
            rows = await (postgres.erasable(batch_id) if dry_run else postgres.erase(batch_id))
        removed = (
            *self._of_copy(copy),
            *_of_rows(rows),
            Removed(REDIS, "waiting_entries", sum(each.count for each in entries)),
            Removed(self.store_name, "waiting_dead_letters", dead_letters.count),
        )
        unread = [key for each in (*entries, dead_letters) for key in each.unread]
        left = [Left("waiting_entries", f"{', '.join(unread)} {_UNREAD}")] if unread else []
        left += [Left("events", _EVENTS), Left("announcements", _ANNOUNCEMENTS), Left("dead_letters", _DEAD_LETTERS)]
        return Erased(erasure, tuple(each for each in removed if each.count), tuple(left))

    def _of_copy(self, copy: ErasedCopy) -> Iterable[Removed]:
        place = self.store_name
        return (
            Removed(place, "batch", int(copy.known)),
            Removed(place, "essays", copy.essays),
            Removed(place, "summaries", copy.summaries),
        )


def _of_rows(rows: ErasedRows | None) -> Iterable[Removed]:
    if rows is None:
        return ()
    return (
        Removed(POSTGRESQL, "essays", rows.essays),
        Removed(POSTGRESQL, "facts", rows.facts),
        Removed(POSTGRESQL, "history_entries", rows.entries),
    )
