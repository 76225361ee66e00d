"""The archive's actor: writes facts and explanations to PostgreSQL, or to a queue while PostgreSQL is unreachable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import anyio
import structlog

from bcs.actors.archive.maintenance import ArchiveMaintenance
from bcs.actors.isolate import isolate
from bcs.actors.messages import WriteEntries
from bcs.actors.portions import portions
from bcs.actors.runtime import Runtime
from bcs.actors.spans import about_archive, queued
from bcs.domain.history import HistoryEntry, has_facts, weight
from bcs.errors import BacklogFull, StoreError, StoreRefused, StoreUnavailable
from bcs.observability.failpoints import FailPoint, hit
from bcs.storage.archive import Archive
from bcs.supervision import ActorContext, Envelope, serve

log = structlog.stdlib.get_logger("bcs.archive", actor="archive")

_ENVELOPES_AT_A_TIME = 500
_IDS_LOGGED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveWriter:
    """Writes many waiting entries with one statement. One instance serves all incarnations of the actor.

    :param maintenance: runs concurrently with the writes.
    """

    runtime: Runtime
    archive: Archive
    maintenance: ArchiveMaintenance

    @property
    def _facts_at_a_time(self) -> int:
        """The most facts in one statement, see `bcs.domain.history.weight`."""
        return self.runtime.settings.archive_facts_per_write

    async def run(self, context: ActorContext[WriteEntries]) -> None:
        """Write until a stop is requested, then write the rest of the mailbox.

        The actor does not crash while PostgreSQL or the queue is unreachable.
        """
        await hit(FailPoint.STARTING, context.name)

        async def handle(envelopes: list[Envelope[WriteEntries]]) -> None:
            for commands in portions(_messages(envelopes), lambda command: command.weight, self._facts_at_a_time):
                await self._write(context, commands)

        async def on_max_deliveries(envelope: Envelope[WriteEntries]) -> None:
            ids = {entry.correlation_id for entry in envelope.message.entries if entry.correlation_id}
            log.error(
                "archive_entries_dropped",
                error=repr(envelope.last_error),
                correlation_ids=sorted(ids)[:_IDS_LOGGED],
                summed_by=(),
            )
            self._fail(envelope.message, StoreRefused("archive", repr(envelope.last_error)))

        async with anyio.create_task_group() as group:
            group.start_soon(self.maintenance.run)
            if context.incarnation == 1:
                # If PostgreSQL answers, the archive is connected before the next actors start.
                await self.maintenance.wait_first_probe()
            await serve(context, handle, limit=_ENVELOPES_AT_A_TIME, on_max_deliveries=on_max_deliveries)
            group.cancel_scope.cancel()
        await self.maintenance.finish()

    async def _write(self, context: ActorContext[WriteEntries], commands: Sequence[WriteEntries]) -> None:
        async def attempt(commands: Sequence[WriteEntries]) -> None:
            try:
                for entries in self._portions(commands):
                    context.heartbeat()
                    await self._make_durable(entries)
            except StoreRefused:
                raise
            except StoreError as error:
                if isinstance(error, StoreUnavailable) and error.partly and len(commands) > 1:
                    await self._queue_each(commands)
                    return
                for command in commands:
                    self._fail(command, error)
                return
            for command in commands:
                if command.reply:
                    command.reply.send(None)

        async def on_refused(command: WriteEntries, error: StoreRefused) -> None:
            self._fail(command, error)

        await isolate(commands, attempt, on_refused)

    def _portions(self, commands: Sequence[WriteEntries]) -> Iterable[Sequence[HistoryEntry]]:
        if len(commands) == 1:
            # A single command can be too large for one statement: it has all that a batch's actor handles at once.
            return portions(commands[0].entries, weight, self._facts_at_a_time)
        return [[entry for command in commands for entry in command.entries]]

    async def _make_durable(self, entries: Sequence[HistoryEntry]) -> None:
        await hit(FailPoint.ARCHIVE_RECEIVED, "archive")
        with self.runtime.tracer.span(about_archive, entries) as span:
            try:
                await self.archive.postgres.write(entries)
            except StoreUnavailable:
                span.set(queued)
                await self._queue(entries)
            else:
                self.runtime.telemetry.archive_written.inc(len(entries))
        await hit(FailPoint.ARCHIVE_WRITTEN, "archive")

    async def _queue(self, entries: Sequence[HistoryEntry]) -> None:
        # Separate queues: explanations must not use the room of facts, or count as facts that PostgreSQL lacks.
        facts = [entry for entry in entries if has_facts(entry)]
        explanations = [entry for entry in entries if not has_facts(entry)]
        await self.archive.backlog.append(facts)
        self.runtime.telemetry.archive_queued.inc(len(facts))
        try:
            await self.archive.explanations.append(explanations)
        except BacklogFull:
            self.runtime.telemetry.history_dropped.inc(len(explanations))
        self.maintenance.wake()

    async def _queue_each(self, commands: Sequence[WriteEntries]) -> None:
        """Queue each command alone, so that a server that is away fails only its own; nothing is added twice."""

        async def queue(command: WriteEntries) -> None:
            try:
                await self._queue(command.entries)
            except StoreError as error:
                self._fail(command, error)
            else:
                if command.reply:
                    command.reply.send(None)

        # At the same time, so that the commands share round trips, and the deadline of the server that is away.
        async with anyio.create_task_group() as tasks:
            for command in commands:
                tasks.start_soon(queue, command)

    def _fail(self, command: WriteEntries, error: StoreError) -> None:
        if command.reply:
            command.reply.fail(error)  # the sender retries, or fails its own caller
        else:
            self.runtime.telemetry.history_dropped.inc(len(command.entries))


def _messages(envelopes: Iterable[Envelope[WriteEntries]]) -> Iterator[WriteEntries]:
    # A caller that no longer waits has sent the command again, or has failed its own caller.
    return (envelope.message for envelope in envelopes if not envelope.caller_gone)
