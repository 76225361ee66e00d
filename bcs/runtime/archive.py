"""What a service has besides when it keeps a permanent record: the archive, and the way to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from bcs.actors.archive.drain import Drain
from bcs.actors.archive.maintenance import Upkeep
from bcs.actors.archive.writer import ArchiveClient, ArchiveWriter, archive_mailbox
from bcs.config.settings import Settings
from bcs.observability.telemetry import Telemetry
from bcs.observability.waits import Waits
from bcs.storage.archive import Archive
from bcs.storage.ports import OutboxEntrance
from bcs.supervision import ChildSpec

FIRST_LOOKS = 2
"""A start asks whether PostgreSQL is of any use, and then the archive looks for it. Both share the time for that."""


@dataclass(frozen=True, slots=True)
class ArchiveParts:
    """The archive of one service.

    :param archive_client: the way to the actor.
    :param spec: of the actor.
    """

    archive_client: ArchiveClient
    spec: ChildSpec


def archive_parts(
    *,
    settings: Settings,
    archive: Archive,
    outbox: OutboxEntrance,
    telemetry: Telemetry,
    now: Callable[[], datetime],
    waits: Waits,
    asks: int,
) -> ArchiveParts:
    """Put the archive together.

    :param now: wall-clock time.
    :param waits: is told what the archive waits for.
    :param asks: how many may ask it at a time.
    """
    drain = Drain(
        record=archive.postgres,
        queues=(archive.backlog, archive.explanations),
        former_queue=archive.former_backlog,
        telemetry=telemetry,
        facts_at_a_time=settings.archive_facts_per_write,
        deadline_seconds=settings.archive_drain_deadline_seconds,
        takeover_seconds=settings.outbox_takeover_seconds,
    )
    upkeep = Upkeep(
        record=archive.postgres,
        drain=drain,
        outbox=outbox,
        now=now,
        waits=waits,
        probe_interval_seconds=settings.database_probe_interval_seconds,
        first_probe_seconds=settings.database_first_probe_seconds / FIRST_LOOKS,
        retention=timedelta(days=settings.archive_retention_days),
    )
    mailbox = archive_mailbox(asks)
    # The actor tries the record first and then Redis.
    timeout_seconds = settings.database_deadline_seconds + settings.redis_deadline_seconds * 2
    spec = ChildSpec(
        "archive",
        ArchiveWriter(archive, settings.archive_facts_per_write, upkeep, telemetry).run,
        mailbox=mailbox,
        hang_seconds=settings.hang_seconds,
        shutdown_seconds=settings.shutdown_seconds / 2,
    )
    return ArchiveParts(ArchiveClient(mailbox, telemetry, timeout_seconds, upkeep.wake), spec)
