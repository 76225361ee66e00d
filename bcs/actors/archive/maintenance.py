"""The maintenance of the archive: reconnects, drains the queues, and deletes expired entries."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from bcs.actors.archive.drain import Drain
from bcs.actors.portions import Amount
from bcs.actors.runtime import Runtime
from bcs.errors import StoreError, StoreUnavailable
from bcs.storage.ports import OutboxWriter

if TYPE_CHECKING:
    # This module needs the extra `postgres`.
    from bcs.storage.postgres.archive import PostgresArchive

log = structlog.stdlib.get_logger("bcs.archive", actor="archive")

_PROBE_DEADLINE_SECONDS = 5.0
_LINGER_SECONDS = 0.02
_FINISH_SECONDS = 3.0
_ANNOUNCEMENTS_LIMIT = 100
# Long, because no caller waits for these steps.
_STEP_DEADLINE_SECONDS = 60.0
_RETENTION_INTERVAL_SECONDS = 3600.0
_RETENTION_STEP = 1000
_RETENTION_PAUSE_SECONDS = 0.1
_ACTOR = "archive"
# The actions that the archive may have to retry.
_CONNECT = "connect to PostgreSQL"
_DELIVER = "move announcements from PostgreSQL to the outbox"
_DRAIN = "write to PostgreSQL the entries that wait in Redis"
_USE_STREAMS = "access streams of the queues in Redis"
_DELETE = "delete old entries from PostgreSQL"


@dataclass(slots=True, kw_only=True)
class ArchiveMaintenance:
    """Maintains the archive. One instance serves all incarnations of the archive's actor.

    :param first_probe_seconds: how long the start of the actor waits for the first probe.
    """

    runtime: Runtime
    archive: PostgresArchive
    drain: Drain
    outbox: OutboxWriter
    first_probe_seconds: float
    _work: anyio.Event = field(default_factory=anyio.Event, init=False)
    _probed: anyio.Event = field(default_factory=anyio.Event, init=False)
    _deleted_at_a_time: Amount = field(default_factory=lambda: Amount(_RETENTION_STEP), init=False)

    def wake(self) -> None:
        """Drain the queues soon, because entries wait in them."""
        self._work.set()

    async def wait_first_probe(self) -> None:
        """Wait until the first probe has ended, with or without success, or its time limit is over."""
        # Another replica may be upgrading the schema, which can take much longer. Liveness must not wait for that.
        with anyio.move_on_after(self.first_probe_seconds):
            await self._probed.wait()

    async def run(self) -> None:
        """Maintain the archive until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._probe)
            group.start_soon(self._drain_when_woken)
            group.start_soon(self._delete_expired_hourly)

    async def finish(self) -> None:
        """Drain once more before a stop. Another process drains the rest."""
        with anyio.move_on_after(_FINISH_SECONDS):
            try:
                await self.drain.drain()
            except StoreError as error:
                log.debug("archive_backlog_not_drained", problem=str(error))

    async def _probe(self) -> None:
        while True:
            try:
                await self.archive.probe(_PROBE_DEADLINE_SECONDS)
            except StoreError as error:
                self._begin_wait(_CONNECT, error)
            else:
                self.runtime.waits.end(_ACTOR, _CONNECT)
                self._probed.set()
                self.wake()
                await self._try_to_deliver()
            self._probed.set()
            await anyio.sleep(self.runtime.settings.database_probe_interval_seconds)

    async def _try_to_deliver(self) -> None:
        try:
            await self._deliver_announcements()
        except StoreError as error:
            self._begin_wait(_DELIVER, error)
        else:
            self.runtime.waits.end(_ACTOR, _DELIVER)

    def _begin_wait(self, doing: str, error: StoreError) -> None:
        # The client of PostgreSQL logs an outage of PostgreSQL itself.
        of_postgresql = isinstance(error, StoreUnavailable) and error.store == "postgresql"
        self.runtime.waits.begin(_ACTOR, doing, str(error), log_cause=not of_postgresql)

    async def _deliver_announcements(self) -> None:
        """Move the announcements that were stored while Redis was unreachable to the outbox."""
        while await self.archive.deliver_announcements(
            self.outbox.append, limit=_ANNOUNCEMENTS_LIMIT, deadline_seconds=_STEP_DEADLINE_SECONDS
        ):
            pass

    async def _drain_when_woken(self) -> None:
        while True:
            await self._work.wait()
            # Entries that are queued at almost the same time are then written by one statement.
            await anyio.sleep(_LINGER_SECONDS)
            self._work = anyio.Event()
            try:
                await self.drain.drain()
            except StoreError as error:
                self._begin_wait(_DRAIN, error)
            else:
                self.runtime.waits.end(_ACTOR, _DRAIN)
                self.runtime.waits.keep(_ACTOR, _USE_STREAMS, self.drain.failing)

    async def _delete_expired_hourly(self) -> None:
        retention = timedelta(days=self.runtime.settings.archive_retention_days)
        while True:
            before, step = self.runtime.now() - retention, self._deleted_at_a_time.now
            try:
                deleted = await self.archive.delete_expired(before, step, _STEP_DEADLINE_SECONDS)
            except StoreError as error:
                # Delete fewer batches at a time: a thousand batches can have millions of rows.
                if isinstance(error, StoreUnavailable) and error.late:
                    self._deleted_at_a_time.was_too_much(step)
                self._begin_wait(_DELETE, error)
                await anyio.sleep(self.runtime.settings.database_probe_interval_seconds)
            else:
                self.runtime.waits.end(_ACTOR, _DELETE)
                self._deleted_at_a_time.was_taken()
                await anyio.sleep(_RETENTION_PAUSE_SECONDS if deleted else _RETENTION_INTERVAL_SECONDS)
