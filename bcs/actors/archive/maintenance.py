"""What the archive does beside writing: finds the record again, has what waits drained, forgets what is too old."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from bcs.actors.archive.drain import Drain
from bcs.actors.portions import Amount
from bcs.errors import StoreError, StoreUnavailable
from bcs.observability.waits import Waits
from bcs.storage.ports import OutboxEntrance

if TYPE_CHECKING:
    # It takes the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive

log = structlog.stdlib.get_logger("bcs.archive", actor="archive")

_PROBE_DEADLINE_SECONDS = 5.0
_LINGER_SECONDS = 0.02
_FINISH_SECONDS = 3.0
_ANNOUNCEMENTS_LIMIT = 100
# Nobody waits for that.
_STEP_DEADLINE_SECONDS = 60.0
_RETENTION_INTERVAL_SECONDS = 3600.0
_RETENTION_STEP = 1000
_RETENTION_PAUSE_SECONDS = 0.1
_ACTOR = "archive"
# What the archive may wait to do.
_CONNECT = "connect to PostgreSQL"
_DELIVER = "move announcements from PostgreSQL to the outbox"
_DRAIN = "write to PostgreSQL the entries that wait in Redis"
_FORGET = "delete old entries from PostgreSQL"


@dataclass(slots=True, kw_only=True)
class Upkeep:
    """Serves all incarnations of the archive actor.

    :param now: wall-clock time.
    :param waits: is told what the archive waits for.
    :param probe_interval_seconds: the time between questions whether the record is there.
    :param first_probe_seconds: how long a start waits for the first answer.
    :param retention: how long history and batches are kept.
    """

    record: PostgresArchive
    drain: Drain
    outbox: OutboxEntrance
    now: Callable[[], datetime]
    waits: Waits
    probe_interval_seconds: float
    first_probe_seconds: float
    retention: timedelta
    _news: anyio.Event = field(default_factory=anyio.Event, init=False)
    _looked: anyio.Event = field(default_factory=anyio.Event, init=False)
    _forgotten_at_a_time: Amount = field(default_factory=lambda: Amount(_RETENTION_STEP), init=False)

    def wake(self) -> None:
        """Something waits for the record."""
        self._news.set()

    async def first_look(self) -> None:
        """Wait until the record was looked for once, found or not; no longer than a start may take for it."""
        # Another replica may be upgrading the schema, which can take much longer; liveness must not wait for that.
        with anyio.move_on_after(self.first_probe_seconds):
            await self._looked.wait()

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
                await self.drain.drain()
            except StoreError as error:
                log.debug("archive_backlog_not_drained", problem=str(error))

    async def _find_again(self) -> None:
        while True:
            try:
                await self.record.probe(_PROBE_DEADLINE_SECONDS)
            except StoreError as error:
                self._wait(_CONNECT, error)
            else:
                self.waits.end(_ACTOR, _CONNECT)
                self._looked.set()
                self.wake()
                await self._try_to_deliver()
            self._looked.set()
            await anyio.sleep(self.probe_interval_seconds)

    async def _try_to_deliver(self) -> None:
        try:
            await self._deliver_announcements()
        except StoreError as error:
            self._wait(_DELIVER, error)
        else:
            self.waits.end(_ACTOR, _DELIVER)

    def _wait(self, doing: str, error: StoreError) -> None:
        # That PostgreSQL is away stands in the log already.
        of_postgresql = isinstance(error, StoreUnavailable) and error.store == "postgresql"
        self.waits.begin(_ACTOR, doing, str(error), aloud=not of_postgresql)

    async def _deliver_announcements(self) -> None:
        """Move to the outbox what was announced while Redis was away."""
        while await self.record.deliver_announcements(
            self.outbox.append, limit=_ANNOUNCEMENTS_LIMIT, deadline_seconds=_STEP_DEADLINE_SECONDS
        ):
            pass

    async def _drain_on_news(self) -> None:
        while True:
            await self._news.wait()
            # What comes at the same time is written by one statement.
            await anyio.sleep(_LINGER_SECONDS)
            self._news = anyio.Event()
            try:
                await self.drain.drain()
            except StoreError as error:
                self._wait(_DRAIN, error)
            else:
                self.waits.end(_ACTOR, _DRAIN)

    async def _forget_hourly(self) -> None:
        while True:
            before, step = self.now() - self.retention, self._forgotten_at_a_time.now
            try:
                forgotten = await self.record.forget(before, step, _STEP_DEADLINE_SECONDS)
            except StoreError as error:
                # A thousand batches may have millions of rows.
                if isinstance(error, StoreUnavailable) and error.late:
                    self._forgotten_at_a_time.was_too_much(step)
                self._wait(_FORGET, error)
                await anyio.sleep(self.probe_interval_seconds)
            else:
                self.waits.end(_ACTOR, _FORGET)
                self._forgotten_at_a_time.was_taken()
                await anyio.sleep(_RETENTION_PAUSE_SECONDS if forgotten else _RETENTION_INTERVAL_SECONDS)
