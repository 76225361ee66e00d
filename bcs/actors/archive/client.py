"""The way to the archive's actor, for those who have entries to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bcs.actors.asking import ask_with_retry
from bcs.actors.messages import WriteEntries
from bcs.domain.history import HistoryEntry, weight
from bcs.errors import StoreUnavailable
from bcs.observability.telemetry import Telemetry
from bcs.storage.postgres.pace import extra_seconds
from bcs.supervision import AskTimeout, Mailbox, MailboxFull

# Entries that only explain an answer wait in the mailbox. Beyond this number they are dropped, and counted.
_EXPLANATIONS_LIMIT = 10_000


class ArchiveClient:
    """Sends entries to the archive's actor.

    :param mailbox: see `archive_mailbox`.
    :param timeout_seconds: how long the actor may take for a small write; a large one gets more time. It is longer than
        the actor needs to try the archive and then the queue.
    :param wake: notifies the actor that something waits in the queue.
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
        """Write entries. When this returns they are durable, in the archive or in the queue before it.

        Cancellation leaves open whether they are written; writing them again changes nothing.

        :raises StoreUnavailable: neither the archive nor the queue took them.
        :raises BacklogFull: the archive is away, and the queue before it is full.
        :raises StoreRefused: the archive will never take them.
        """
        kept = tuple(entries)
        facts = sum(map(weight, kept))
        timeout_seconds = self._timeout_seconds + extra_seconds(facts)
        try:
            await ask_with_retry(
                lambda: self._mailbox.ask(lambda reply: WriteEntries(kept, facts, reply), timeout_seconds)
            )
        except (AskTimeout, MailboxFull) as error:
            raise StoreUnavailable("archive", str(error)) from error

    def write_soon(self, entry: HistoryEntry) -> None:
        """Write an entry soon. A kill of the process just after this call can lose the entry."""
        try:
            if self._mailbox.depth >= _EXPLANATIONS_LIMIT:
                raise MailboxFull(self._mailbox.name, _EXPLANATIONS_LIMIT)
            self._mailbox.send_nowait(WriteEntries((entry,), weight(entry)))
        except MailboxFull:
            self._telemetry.history_dropped.inc()


def archive_mailbox(asks: int) -> Mailbox[WriteEntries]:
    """The mailbox of the archive's actor.

    :param asks: how many asks may wait at a time.
    """
    return Mailbox("archive", asks + _EXPLANATIONS_LIMIT)
