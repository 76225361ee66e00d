"""Puts the archive's actor and its client together."""

from __future__ import annotations

from dataclasses import dataclass

from bcs.actors.archive.client import ArchiveClient, archive_mailbox
from bcs.actors.archive.drain import Drain
from bcs.actors.archive.maintenance import ArchiveMaintenance
from bcs.actors.archive.writer import ArchiveWriter
from bcs.actors.runtime import Runtime
from bcs.storage.archive import Archive
from bcs.storage.ports import OutboxWriter
from bcs.supervision import ChildSpec

FIRST_PROBES = 2
"""A start first checks that PostgreSQL is usable, then the archive's actor probes it. Both share one time limit."""


@dataclass(frozen=True, slots=True)
class ArchiveParts:
    """The archive of one service.

    :param archive_client: sends messages to the actor.
    :param spec: the child spec of the actor.
    """

    archive_client: ArchiveClient
    spec: ChildSpec


def archive_parts(*, runtime: Runtime, archive: Archive, outbox: OutboxWriter, asks: int) -> ArchiveParts:
    """Put the actor and its client together.

    :param asks: the most asks that may wait for the actor at the same time.
    """
    settings = runtime.settings
    drain = Drain(
        runtime=runtime,
        archive=archive.postgres,
        queues=(archive.backlog, archive.explanations),
    )
    maintenance = ArchiveMaintenance(
        runtime=runtime,
        archive=archive.postgres,
        drain=drain,
        outbox=outbox,
        first_probe_seconds=settings.database_first_probe_seconds / FIRST_PROBES,
    )
    mailbox = archive_mailbox(asks)
    # The actor tries PostgreSQL first and then Redis.
    timeout_seconds = settings.database_deadline_seconds + settings.redis_deadline_seconds * 2
    spec = ChildSpec(
        "archive",
        ArchiveWriter(runtime=runtime, archive=archive, maintenance=maintenance).run,
        mailbox=mailbox,
        hang_seconds=settings.hang_seconds,
        shutdown_seconds=settings.shutdown_seconds / 2,
    )
    return ArchiveParts(ArchiveClient(mailbox, runtime.telemetry, timeout_seconds, maintenance.wake), spec)
