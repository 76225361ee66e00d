"""Writes to the permanent record what waits for it in Redis, as much at a time as PostgreSQL takes in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import anyio
import structlog

from bcs.actors.portions import Amount, portions
from bcs.domain.history import HistoryEntry, weight
from bcs.errors import StoreRefused, StoreUnavailable
from bcs.observability.telemetry import Telemetry
from bcs.storage.ports import Leased
from bcs.storage.redis.archive_queue import ArchiveQueue

if TYPE_CHECKING:
    # It takes the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive

log = structlog.stdlib.get_logger("bcs.archive", actor="archive")

_LEASED_AT_A_TIME = 200
# An entry that is alone has twice the time at each try, and after so many tries it is set aside.
_TRIES_ALONE = 3


@dataclass(frozen=True, slots=True)
class _Late:
    """An entry that was written alone, and not in time.

    :param times: how often.
    :param written_before: how many portions had been written when that happened first.
    """

    times: int
    written_before: int


@dataclass(slots=True, kw_only=True)
class Drain:
    """Drains the queues before the record. The queues always move: nothing holds up what is behind it for ever.

    :param queues: what waits for the record.
    :param former_queue: the queue of facts of releases before 0.2.0, which may still add to it during an upgrade.
    :param facts_at_a_time: how much is written by one statement, see `bcs.domain.history.weight`.
    :param deadline_seconds: how long that may take; then half as much is tried.
    :param takeover_seconds: entries in a silent replica's hand for so long are taken over.
    """

    record: PostgresArchive
    queues: Sequence[ArchiveQueue]
    former_queue: ArchiveQueue
    telemetry: Telemetry
    facts_at_a_time: int
    deadline_seconds: float
    takeover_seconds: float
    _amount: Amount = field(init=False)
    _late: dict[UUID, _Late] = field(default_factory=dict, init=False)
    _written: int = field(default=0, init=False)
    _takeover_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._amount = Amount(self.facts_at_a_time)

    async def drain(self) -> None:
        """Write what waits, until nothing does.

        :raises StoreUnavailable: the record failed, or Redis; what is left is tried again by the next call.
        """
        if not self.record.reachable:
            return
        takeover = anyio.current_time() >= self._takeover_at
        if takeover:
            self._takeover_at = anyio.current_time() + self.takeover_seconds / 2
        # To ask first leaves no empty stream of the former name behind.
        former = (self.former_queue,) if await self.former_queue.waiting() else ()
        for queue in (*former, *self.queues):
            await self._drain_one(queue, takeover=takeover)

    async def _drain_one(self, queue: ArchiveQueue, *, takeover: bool) -> None:
        # What this process had in hand when it failed, what a dead one had, and then the rest.
        while leased := await queue.resume(_LEASED_AT_A_TIME):
            await self._write_all(queue, leased)
        while takeover and (leased := await queue.recover(self.takeover_seconds, _LEASED_AT_A_TIME)):
            await self._write_all(queue, leased)
        while leased := await queue.lease(_LEASED_AT_A_TIME):
            await self._write_all(queue, leased)

    async def _write_all(self, queue: ArchiveQueue, leased: Sequence[Leased[HistoryEntry]]) -> None:
        while leased:
            portion = next(portions(leased, _weight_of, self._amount.now))
            await self._write(queue, portion)
            leased = leased[len(portion) :]

    async def _write(self, queue: ArchiveQueue, portion: Sequence[Leased[HistoryEntry]]) -> None:
        first = portion[0]
        late = self._late.get(first.message.entry_id) if len(portion) == 1 else None
        deadline_seconds = self.deadline_seconds * 2 ** (late.times if late else 0)
        try:
            await self.record.write([entry.message for entry in portion], deadline_seconds=deadline_seconds)
        except StoreRefused as error:
            if len(portion) > 1:
                for entry in portion:
                    await self._write(queue, [entry])
                return
            await self._park(queue, first, str(error))
        except StoreUnavailable as error:
            if len(portion) > 1:
                self._amount.was_too_much(sum(map(_weight_of, portion)))
            else:
                await self._let_others_pass(queue, first, late, error)
            raise
        else:
            await queue.ack([entry.entry_id for entry in portion])
            self.telemetry.archive_written.inc(len(portion))
            self._written += 1
            self._amount.was_taken()
            if late:
                del self._late[first.message.entry_id]

    async def _let_others_pass(
        self, queue: ArchiveQueue, entry: Leased[HistoryEntry], late: _Late | None, error: StoreUnavailable
    ) -> None:
        if error.late:
            late = _Late(late.times + 1 if late else 1, late.written_before if late else self._written)
            self._late[entry.message.entry_id] = late
            # PostgreSQL takes others, or it may be at fault.
            if late.times >= _TRIES_ALONE and self._written > late.written_before:
                await self._park(queue, entry, f"PostgreSQL did not take it in time, {late.times} times")
                return
        await queue.requeue([entry])

    async def _park(self, queue: ArchiveQueue, entry: Leased[HistoryEntry], problem: str) -> None:
        await queue.park(entry, problem)
        self._late.pop(entry.message.entry_id, None)
        self.telemetry.archive_parked.inc()
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
