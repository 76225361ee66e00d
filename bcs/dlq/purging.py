"""Deletes dead letters for good: whole partitions up to a point, since Kafka deletes nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import anyio
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from bcs.contracts.letters import Reference
from bcs.dlq.reading import Survey, kafka_answers
from bcs.dlq.selection import moment
from bcs.settings import Settings


def last_to_purge(survey: Survey, before: datetime | None) -> dict[tuple[str, int], int]:
    """Up to which offset each partition can be deleted: nothing behind a letter that is to stay.

    What can't be read has no time; it goes with what lies around it.

    :param before: letters written then or later stay; None lets none stay.
    """
    stays: dict[tuple[str, int], int] = {}
    for reference, letter in survey.letters.items():
        if before is not None and moment(letter.timestamp) >= before:
            place = (reference.topic, reference.partition)
            stays[place] = min(reference.offset, stays.get(place, reference.offset))
    last: dict[tuple[str, int], int] = {}
    for reference in (*survey.letters, *survey.unreadable):
        place = (reference.topic, reference.partition)
        if reference.offset < stays.get(place, reference.offset + 1):
            last[place] = max(reference.offset, last.get(place, 0))
    return last


def purged(references: Iterable[Reference], last: dict[tuple[str, int], int]) -> list[Reference]:
    """Which of these would be deleted."""
    return [each for each in references if each.offset <= last.get((each.topic, each.partition), -1)]


async def purge(settings: Settings, last: dict[tuple[str, int], int]) -> None:
    """Delete everything up to these offsets, which are deleted too.

    :raises KafkaUnavailable: Kafka does not answer, or can't delete.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    try:
        with kafka_answers(), anyio.fail_after(settings.kafka_request_timeout_seconds):
            await admin.start()
            await admin.delete_records(
                {TopicPartition(*place): RecordsToDelete(offset + 1) for place, offset in last.items()}
            )
    finally:
        with anyio.CancelScope(shield=True):
            await admin.close()
