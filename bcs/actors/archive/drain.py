"""Writes the entries that wait in Redis to PostgreSQL, as many at a time as fit into the deadline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import anyio
import structlog

from bcs.actors.isolate import isolate
from bcs.actors.portions import Amount, portions
from bcs.actors.runtime import Runtime
from bcs.actors.spans import about_archive
from bcs.domain.history import HistoryEntry, weight
from bcs.errors import StoreRefused, StoreUnavailable
from bcs.storage.ports import Leased
from bcs.storage.redis.archive_queue import ArchiveQueue

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive

log = structlog.stdlib.get_logger("bcs.archive", actor="archive")

_LEASED_AT_A_TIME = 200
# Each try of a single entry has twice the time of the try before. After so many tries the entry is parked.
_TRIES_ALONE = 3


@dataclass(frozen=True, slots=True)
class _LateEntry:
    """A single entry whose write missed the deadline.

    :param times: how often.
    :param written_before: the number of portions that were written before the first of these tries.
    """

    times: int
    written_before: int


@dataclass(slots=True, kw_only=True)
class Drain:
    """Drains the queues of the archive. No entry blocks the entries behind it for ever.

    A write that misses its deadline is retried with half as many facts.

    :param queues: the queues of entries that wait for PostgreSQL.
    """

    runtime: Runtime
    archive: PostgresArchive
    queues: Sequence[ArchiveQueue]
    _amount: Amount = field(init=False)
    _late: dict[UUID, _LateEntry] = field(default_factory=dict, init=False)
    _written: int = field(default=0, init=False)
    _takeover_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._amount = Amount(self.runtime.settings.archive_facts_per_write)

    async def drain(self) -> None:
        """Write the waiting entries until the queues are empty.

        :raises StoreUnavailable: PostgreSQL or Redis failed; the next call retries the remaining entries.
        """
        if not self.archive.reachable:
            return
        takeover = anyio.current_time() >= self._takeover_at
        if takeover:
            self._takeover_at = anyio.current_time() + self.runtime.settings.outbox_takeover_seconds / 2
        for queue in self.queues:
            await self._drain_one(queue, takeover=takeover)

    @property
    def failing(self) -> dict[str, str]:
        """The keys of the queues that can't be used now, each with the reason."""
        return {key: str(error) for queue in self.queues for key, error in queue.failing.items()}

    async def _drain_one(self, queue: ArchiveQueue, *, takeover: bool) -> None:
        # First the entries that this process leased and did not ack, then those of a dead process, then the rest.
        while leased := await queue.resume(_LEASED_AT_A_TIME):
            await self._write_all(queue, leased)
        takeover_seconds = self.runtime.settings.outbox_takeover_seconds
        while takeover and (leased := await queue.recover(takeover_seconds, _LEASED_AT_A_TIME)):
            await self._write_all(queue, leased)
        while leased := await queue.lease(_LEASED_AT_A_TIME):
            await self._write_all(queue, leased)

    async def _write_all(self, queue: ArchiveQueue, leased: Sequence[Leased[HistoryEntry]]) -> None:
        while leased:
            portion = next(portions(leased, _weight_of, self._amount.now))
            await self._write(queue, portion)
            leased = leased[len(portion) :]

    async def _write(self, queue: ArchiveQueue, portion: Sequence[Leased[HistoryEntry]]) -> None:
        await isolate(portion, partial(self._try_to_write, queue), partial(self._park, queue))

    async def _try_to_write(self, queue: ArchiveQueue, portion: Sequence[Leased[HistoryEntry]]) -> None:
        first = portion[0]
        late = self._late.get(first.message.entry_id) if len(portion) == 1 else None
        deadline_seconds = self.runtime.settings.archive_drain_deadline_seconds * 2 ** (late.times if late else 0)
        try:
            entries = [entry.message for entry in portion]
            with self.runtime.tracer.span(about_archive, entries):
                await self.archive.write(entries, deadline_seconds=deadline_seconds)
        except StoreUnavailable as error:
            if len(portion) > 1:
                self._amount.was_too_much(sum(map(_weight_of, portion)))
            else:
                await self._requeue_or_park(queue, first, late, error)
            raise
        await queue.ack(portion)
        self.runtime.telemetry.archive_written.inc(len(portion))
        self._written += 1
        self._amount.was_taken()
        if late:
            del self._late[first.message.entry_id]

    async def _requeue_or_park(
        self, queue: ArchiveQueue, entry: Leased[HistoryEntry], late: _LateEntry | None, error: StoreUnavailable
    ) -> None:
        if error.late:
            late = _LateEntry(late.times + 1 if late else 1, late.written_before if late else self._written)
            self._late[entry.message.entry_id] = late
            # Park only if PostgreSQL has written other entries since: otherwise PostgreSQL itself may be the cause.
            if late.times >= _TRIES_ALONE and self._written > late.written_before:
                problem = StoreRefused("postgresql", f"the entry missed the deadline {late.times} times")
                await self._park(queue, entry, problem)
                return
        await queue.requeue([entry])

    async def _park(self, queue: ArchiveQueue, entry: Leased[HistoryEntry], error: StoreRefused) -> None:
        problem = str(error)
        await queue.park(entry, problem)
        self._late.pop(entry.message.entry_id, None)
        self.runtime.telemetry.archive_parked.inc()
        message = entry.message
        log.error(
            "entry_parked",
            batch_id=message.batch_id,
            correlation_id=message.correlation_id,
            problem=problem,
            summed_by=(),
        )


def _weight_of(leased: Leased[HistoryEntry]) -> int:
    return weight(leased.message)
