"""Announces what was pruned, and keeps why: in the outbox, or in the archive while Redis is away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bcs.actors.archive.writer import ArchiveClient
from bcs.domain.history import PipelineResolved
from bcs.errors import StoreUnavailable
from bcs.storage.archive import Archive
from bcs.storage.ports import POSTGRESQL, OutboxEntrance
from bcs.wire.published import OutboundMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcer:
    """Makes announcements durable before the caller gets an answer.

    :param archive: None where there is no archive.
    :param archive_client: the way to the archive's actor; None where there is no archive.
    """

    outbox: OutboxEntrance
    archive: Archive | None
    archive_client: ArchiveClient | None

    async def announce(self, messages: Sequence[OutboundMessage], resolved: PipelineResolved) -> None:
        """Have pruned phases announced, and the reasons kept. When this returns, both are durable.

        :raises OutboxFull: neither was taken.
        :raises StoreUnavailable: whether they were taken is unknown.
        """
        if resolved.source != POSTGRESQL:
            try:
                await self.outbox.announce(messages, resolved)
            except StoreUnavailable as error:
                if self.archive is None or not self.archive.can_answer_for_redis(error):
                    raise
            else:
                if self.archive_client:
                    self.archive_client.wake()
                return
        assert self.archive is not None  # noqa: S101 (the source is PostgreSQL only where there is an archive)
        await self.archive.postgres.keep(messages, resolved)

    def note(self, resolved: PipelineResolved) -> None:
        """Have an answer kept by which nothing was pruned. It waits in memory, and no caller waits for it."""
        if self.archive_client:
            self.archive_client.note(resolved)
