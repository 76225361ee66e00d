"""Sends entries to the archive's actor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bcs.actors.asking import ask_with_retry
from bcs.actors.messages import WriteEntries
from bcs.domain.history import HistoryEntry, weight
from bcs.errors import StoreUnavailable
from bcs.observability.telemetry import Telemetry
from bcs.storage.postgres.pace import extra_seconds
from bcs.supervision import AskTimeout, Mailbox, MailboxFull

# Entries that only explain an answer wait in the mailbox. Above this number they are dropped, and counted.
_EXPLANATIONS_LIMIT = 10_000


class ArchiveClient:
    """Sends entries to the archive's actor.

    :param mailbox: see `archive_mailbox`.
    :param timeout_seconds: the time limit of a small write; a large write gets more time. It must be longer than the
        actor needs to try the archive and then the queue.
    :param wake: notifies the actor that entries wait in a queue.
    """

    def __init__(
        self,
        mailbox: Mailbox[WriteEntries],
        telemetry: Telemetry,
        timeout_seconds: float,
        wake: Callable[[], None],
    ) -> None:
        self.wake = wake
        self._mailbox = mailbox
        self._telemetry = telemetry
        self._timeout_seconds = timeout_seconds

    async def write_durably(self, entries: Sequence[HistoryEntry]) -> None:
        """Write entries. When this returns, they are durable in PostgreSQL or in the queue.

        After cancellation it is unknown whether the entries are written. Writing them again changes nothing.

        :raises StoreUnavailable: whether PostgreSQL or the queue has stored the entries is unknown.
        :raises BacklogFull: PostgreSQL is unreachable, and the queue is full.
        :raises StoreRefused: the archive can never store the entries.
        """
        to_write = tuple(entries)
        facts = sum(map(weight, to_write))
        timeout_seconds = self._timeout_seconds + extra_seconds(facts)
        try:
            await ask_with_retry(
                lambda: self._mailbox.ask(lambda reply: WriteEntries(to_write, facts, reply), timeout_seconds)
            )
        except (AskTimeout, MailboxFull) as error:
            raise StoreUnavailable("archive", str(error)) from error

    def write_soon(self, entry: HistoryEntry) -> None:
        """Write an entry soon. The entry waits in memory: a crash of the process loses it."""
        try:
            if self._mailbox.depth >= _EXPLANATIONS_LIMIT:
                raise MailboxFull(self._mailbox.name, _EXPLANATIONS_LIMIT)
            self._mailbox.send_nowait(WriteEntries((entry,), weight(entry)))
        except MailboxFull:
            self._telemetry.history_dropped.inc()


def archive_mailbox(asks: int) -> Mailbox[WriteEntries]:
    """The mailbox of the archive's actor.

    :param asks: the number of asks that may wait at the same time.
    """
    return Mailbox("archive", asks + _EXPLANATIONS_LIMIT)
