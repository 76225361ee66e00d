"""What the archive does beside writing: finds the record again, drains what waits for it, forgets what is too old."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from bcs.domain.errors import StoreError, StoreRefused
from bcs.domain.history import HistoryEntry
from bcs.store.base import Leased, Outbox
from bcs.store.redis_backlog import RedisBacklog
from bcs.telemetry import Telemetry

if TYPE_CHECKING:
    # It takes the extra `postgres`.
    from bcs.record.postgres import PostgresRecord

log = structlog.stdlib.get_logger("bcs.archive", actor="archive")

_PROBE_DEADLINE_SECONDS = 5.0
_LINGER_SECONDS = 0.02
_FINISH_SECONDS = 3.0
_DRAIN_LIMIT = 200
# Nobody waits for what is drained, and a roster of a hundred thousand essays takes its time.
_DRAIN_DEADLINE_SECONDS = 60.0
_ANNOUNCEMENTS_LIMIT = 100
_RETENTION_INTERVAL_SECONDS = 3600.0
_RETENTION_STEP = 1000
_RETENTION_PAUSE_SECONDS = 0.1


@dataclass(slots=True)
class Upkeep:
    """Serves all incarnations of the archive actor.

    :param queues: what waits for the record.
    :param outbox_grew: tells the publisher that there is something to publish.
    :param now: wall-clock time.
    :param takeover_seconds: entries in a silent replica's hand for so long are taken over.
    :param probe_interval_seconds: the time between questions whether the record is there.
    :param first_probe_seconds: how long a start waits for the first answer.
    :param retention: how long history and batches are kept.
    """

    record: PostgresRecord
    queues: Sequence[RedisBacklog]
    outbox: Outbox
    telemetry: Telemetry
    outbox_grew: Callable[[], None]
    now: Callable[[], datetime]
    takeover_seconds: float
    probe_interval_seconds: float
    first_probe_seconds: float
    retention: timedelta
    _news: anyio.Event = field(default_factory=anyio.Event, init=False)
    _looked: anyio.Event = field(default_factory=anyio.Event, init=False)
    _takeover_at: float = field(default=0.0, init=False)

    def rouse(self) -> None:
        """Something waits for the record."""
        self._news.set()

    async def first_look(self) -> None:
        """Wait until the record was looked for once, found or not; no longer than a start may take for it."""
        # Another replica may be upgrading the schema, which can take much longer; liveness must not wait for that.
        with anyio.move_on_after(self.first_probe_seconds):
            await self._looked.wait()
        if not self.record.reachable:
            log.warning("record_unreachable", problem=self.record.problem)

    async def run(self) -> None:
        """Look after the record without end."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._find_again)
            group.start_soon(self._drain_on_news)
            group.start_soon(self._forget_hourly)

    async def finish(self) -> None:
        """Drain once more, before a stop; what is left waits for another process."""
        with anyio.move_on_after(_FINISH_SECONDS):
            try:
                await self._drain()
            except StoreError as error:
                log.debug("backlog_left_for_later", problem=str(error))

    async def _find_again(self) -> None:
        while True:
            try:
                await self.record.probe(_PROBE_DEADLINE_SECONDS)
                self._looked.set()
                self.rouse()
                await self._hand_over()
            except StoreError as error:
                log.debug("record_or_outbox_away", problem=str(error))
            self._looked.set()
            await anyio.sleep(self.probe_interval_seconds)

    async def _hand_over(self) -> None:
        """Move to the outbox what was announced while Redis was away."""
        while await self.record.hand_over(
            self.outbox.append, limit=_ANNOUNCEMENTS_LIMIT, deadline_seconds=_DRAIN_DEADLINE_SECONDS
        ):
            self.outbox_grew()

    async def _drain_on_news(self) -> None:
        while True:
            await self._news.wait()
            # What comes at the same time is written by one statement.
            await anyio.sleep(_LINGER_SECONDS)
            self._news = anyio.Event()
            try:
                await self._drain()
            except StoreError as error:
                log.debug("backlog_waits", problem=str(error))

    async def _drain(self) -> None:
        """Write what waits for the record, until nothing does."""
        if not self.record.reachable:
            return
        takeover = anyio.current_time() >= self._takeover_at
        if takeover:
            self._takeover_at = anyio.current_time() + self.takeover_seconds / 2
        for queue in self.queues:
            await self._drain_one(queue, takeover=takeover)

    async def _drain_one(self, queue: RedisBacklog, *, takeover: bool) -> None:
        # What this process had in hand when it failed, what a dead one had, and then the rest.
        while leased := await queue.resume(_DRAIN_LIMIT):
            await self._write(queue, leased)
        while takeover and (leased := await queue.recover(self.takeover_seconds, _DRAIN_LIMIT)):
            await self._write(queue, leased)
        while leased := await queue.lease(_DRAIN_LIMIT):
            await self._write(queue, leased)

    async def _write(self, queue: RedisBacklog, leased: Sequence[Leased[HistoryEntry]]) -> None:
        try:
            await self.record.write([entry.message for entry in leased], deadline_seconds=_DRAIN_DEADLINE_SECONDS)
        except StoreRefused as error:
            if len(leased) > 1:
                for entry in leased:
                    await self._write(queue, [entry])
                return
            await queue.park(leased[0], str(error))
            self.telemetry.archive_parked.inc()
            log.error("entry_parked", batch_id=leased[0].message.batch_id, problem=str(error))  # noqa: TRY400
        else:
            await queue.settle([entry.entry_id for entry in leased])
            self.telemetry.archive_written.inc(len(leased))

    async def _forget_hourly(self) -> None:
        while True:
            before = self.now() - self.retention
            try:
                forgotten = await self.record.forget(before, _RETENTION_STEP, _DRAIN_DEADLINE_SECONDS)
            except StoreError as error:
                log.debug("retention_waits", problem=str(error))
                await anyio.sleep(self.probe_interval_seconds)
            else:
                await anyio.sleep(_RETENTION_PAUSE_SECONDS if forgotten else _RETENTION_INTERVAL_SECONDS)
