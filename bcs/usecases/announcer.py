"""Announces pruned phases with their reasons: in the outbox, or in the archive while Redis is unreachable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bcs.actors.archive.client import ArchiveClient
from bcs.domain.history import PipelineResolved
from bcs.errors import StoreUnavailable
from bcs.storage.archive import Archive
from bcs.storage.ports import POSTGRESQL, OutboxWriter
from bcs.wire.published import OutboundMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcer:
    """Makes announcements durable before the caller gets an answer.

    :param archive: None if there is no archive.
    :param archive_client: None if there is no archive.
    """

    outbox: OutboxWriter
    archive: Archive | None
    archive_client: ArchiveClient | None

    @property
    def explains(self) -> bool:
        """True if there is an archive, which keeps the reasons of each answer."""
        return self.archive is not None

    async def announce(self, messages: Sequence[OutboundMessage], resolved: PipelineResolved | None) -> None:
        """Store the announcements of pruned phases, and the reasons. When this returns, both are durable.

        :param resolved: the reasons; None without an archive.
        :raises OutboxFull: neither was stored.
        :raises StoreUnavailable: they may be stored or not.
        """
        if resolved is None:
            await self.outbox.append(messages)
            return
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
        assert self.archive is not None  # noqa: S101 (the archive answered, or can answer)
        await self.archive.postgres.store_announcements(messages, resolved)

    def write_soon(self, resolved: PipelineResolved) -> None:
        """Store a resolution that pruned nothing. The entry waits in memory, and the caller does not wait for it."""
        if self.archive_client:
            self.archive_client.write_soon(resolved)
