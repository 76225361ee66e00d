"""The archive: writes to the permanent record what became known and what was answered, or queues it for later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import anyio
import structlog

from bcs.actors.archive.maintenance import Upkeep
from bcs.actors.asking import ask_with_retry
from bcs.actors.messages import KeepEntries
from bcs.actors.portions import portions
from bcs.domain.history import FactsRecorded, HistoryEntry, weight
from bcs.errors import BacklogFull, StoreError, StoreRefused, StoreUnavailable
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.telemetry import Telemetry
from bcs.storage.archive import Archive
from bcs.storage.postgres.pace import extra_seconds
from bcs.supervision import ActorContext, AskTimeout, Envelope, Mailbox, MailboxFull, serve

log = structlog.stdlib.get_logger("bcs.archive", actor="archive")

_ENVELOPES_AT_A_TIME = 500
_IDS_LOGGED = 10
# What only explains an answer waits here for a moment; beyond that it is let go, and counted.
_EXPLANATIONS_LIMIT = 10_000


class ArchiveClient:
    """The way to the archive actor, for those who have something to keep.

    :param mailbox: see `archive_mailbox`.
    :param patience_seconds: how long the actor may take, and longer for what is large; longer than it tries the record
        and then the queue.
    :param wake: tells the actor that something waits in the queue.
    """

    def __init__(
        self,
        mailbox: Mailbox[KeepEntries],
        telemetry: Telemetry,
        timeout_seconds: float,
        wake: Callable[[], None],
    ) -> None:
        self.wake = wake
        self._mailbox = mailbox
        self._telemetry = telemetry
        self._timeout_seconds = timeout_seconds

    async def keep(self, entries: Sequence[HistoryEntry]) -> None:
        """Keep entries; they are durable when this returns, in the record or in the queue before it.

        Cancellation leaves open whether they are kept; to keep them again changes nothing.

        :raises StoreUnavailable: neither could take them.
        :raises BacklogFull: the record is away, and so many wait for it that no more are accepted.
        :raises StoreRefused: the record will never take them.
        """
        kept = tuple(entries)
        facts = sum(map(weight, kept))
        timeout_seconds = self._timeout_seconds + extra_seconds(facts)
        try:
            await ask_with_retry(
                lambda: self._mailbox.ask(lambda reply: KeepEntries(kept, facts, reply), timeout_seconds)
            )
        except (AskTimeout, MailboxFull) as error:
            raise StoreUnavailable("archive", str(error)) from error

    def note(self, entry: HistoryEntry) -> None:
        """Keep an entry soon. One that is noted less than a moment before the process is killed may be lost."""
        try:
            if self._mailbox.depth >= _EXPLANATIONS_LIMIT:
                raise MailboxFull(self._mailbox.name, _EXPLANATIONS_LIMIT)
            self._mailbox.send_nowait(KeepEntries((entry,), weight(entry)))
        except MailboxFull:
            self._telemetry.history_dropped.inc()


def archive_mailbox(asks: int) -> Mailbox[KeepEntries]:
    """The archive's mailbox.

    :param asks: how many may ask at a time.
    """
    return Mailbox("archive", asks + _EXPLANATIONS_LIMIT)


@dataclass(frozen=True, slots=True)
class ArchiveWriter:
    """Writes what waits in its mailbox as one statement. One instance serves all incarnations of the actor.

    :param facts_at_a_time: how much is written by one statement, see `bcs.domain.history.weight`.
    :param upkeep: what goes on beside that: finding the record again, draining the queue, retention.
    """

    archive: Archive
    facts_at_a_time: int
    upkeep: Upkeep
    telemetry: Telemetry

    async def run(self, context: ActorContext[KeepEntries]) -> None:
        """Write until asked to stop, and then what is in the mailbox. That record or queue is away is no crash."""
        await hit(FailPoint.STARTING, context.name)

        async def handle(envelopes: list[Envelope[KeepEntries]]) -> None:
            for commands in portions(_messages(envelopes), lambda command: command.weight, self.facts_at_a_time):
                await self._keep(context, commands)

        async def on_max_deliveries(envelope: Envelope[KeepEntries]) -> None:
            ids = {entry.correlation_id for entry in envelope.message.entries if entry.correlation_id}
            log.error(
                "archive_entries_dropped",
                error=repr(envelope.last_error),
                correlation_ids=sorted(ids)[:_IDS_LOGGED],
                summed_by=(),
            )
            self._give_up(envelope.message, StoreRefused("archive", repr(envelope.last_error)))

        async with anyio.create_task_group() as group:
            group.start_soon(self.upkeep.run)
            if context.incarnation == 1:
                # Whoever starts after this one finds the record there, if it is there at all.
                await self.upkeep.first_look()
            await serve(context, handle, limit=_ENVELOPES_AT_A_TIME, on_max_deliveries=on_max_deliveries)
            group.cancel_scope.cancel()
        await self.upkeep.finish()

    async def _keep(self, context: ActorContext[KeepEntries], commands: Sequence[KeepEntries]) -> None:
        try:
            for entries in self._portions(commands):
                context.heartbeat()
                await self._make_durable(entries)
        except StoreRefused as error:
            if len(commands) == 1:
                self._give_up(commands[0], error)
                return
            # One of them spoils the statement for all.
            for command in commands:
                await self._keep(context, [command])
        except StoreError as error:
            for command in commands:
                self._give_up(command, error)
        else:
            for command in commands:
                if command.reply:
                    command.reply.send(None)

    def _portions(self, commands: Sequence[KeepEntries]) -> Iterable[Sequence[HistoryEntry]]:
        if len(commands) == 1:
            # It may have more than a statement should: all that a batch's actor had in hand.
            return portions(commands[0].entries, weight, self.facts_at_a_time)
        return [[entry for command in commands for entry in command.entries]]

    async def _make_durable(self, entries: Sequence[HistoryEntry]) -> None:
        await hit(FailPoint.ARCHIVE_RECEIVED, "archive")
        try:
            await self.archive.postgres.write(entries)
        except StoreUnavailable:
            await self._queue(entries)
        else:
            self.telemetry.archive_written.inc(len(entries))
        await hit(FailPoint.ARCHIVE_WRITTEN, "archive")

    async def _queue(self, entries: Sequence[HistoryEntry]) -> None:
        # What only explains an answer must not take the room of facts, nor look like facts that the record lacks.
        facts = [entry for entry in entries if isinstance(entry, FactsRecorded)]
        explanations = [entry for entry in entries if not isinstance(entry, FactsRecorded)]
        await self.archive.fact_queue.append(facts)
        self.telemetry.archive_queued.inc(len(facts))
        try:
            await self.archive.explanations.append(explanations)
        except BacklogFull:
            self.telemetry.history_dropped.inc(len(explanations))
        self.upkeep.wake()

    def _give_up(self, command: KeepEntries, error: StoreError) -> None:
        if command.reply:
            command.reply.fail(error)  # whoever waits tries again, or tells its caller
        else:
            self.telemetry.history_dropped.inc(len(command.entries))


def _messages(envelopes: Iterable[Envelope[KeepEntries]]) -> Iterator[KeepEntries]:
    # A caller that is gone has asked again, or was told that the entries are not kept.
    return (envelope.message for envelope in envelopes if not envelope.caller_gone)
