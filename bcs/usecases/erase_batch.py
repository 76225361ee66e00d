"""Erases a batch from all stores, and refuses what arrives about it for a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from bcs.actors.runtime import Runtime
from bcs.domain.erasure import ErasureRecorded, What
from bcs.domain.times import microseconds
from bcs.storage.archive import Archive
from bcs.storage.ports import POSTGRESQL, ErasedCopy, StateStore

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import ErasedRows

log = structlog.stdlib.get_logger("bcs.erasure", actor="http")


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
class Erased:
    """What was erased of a batch.

    :param removed: what was there; nothing that was not.
    """

    erasure: ErasureRecorded
    removed: tuple[Removed, ...]


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
        removed = await (self._count(command.batch_id) if command.dry_run else self._erase(erasure))
        erased = Erased(erasure, tuple(each for each in removed if each.count))
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

    async def _erase(self, erasure: ErasureRecorded) -> list[Removed]:
        # The archive first: Redis, which may lose its tombstone, gets it from there again.
        if self.archive:
            await self.archive.postgres.refuse(erasure)
        copy = await self.store.erase(erasure.batch_id, erasure.tombstone)
        rows = await self.archive.postgres.erase(erasure.batch_id) if self.archive else None
        return [*self._of_copy(copy), *_of_rows(rows)]

    async def _count(self, batch_id: str) -> list[Removed]:
        copy = await self.store.erasable(batch_id)
        rows = await self.archive.postgres.erasable(batch_id) if self.archive else None
        return [*self._of_copy(copy), *_of_rows(rows)]

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
