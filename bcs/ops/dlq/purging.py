"""Deletes dead letters for good, up to an offset of each partition, because Kafka can delete nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime

import anyio
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaConnectionError, NodeNotReadyError, UnsupportedVersionError

from bcs.config.settings import Settings
from bcs.domain.times import datetime_of
from bcs.kafka.causes import start
from bcs.kafka.clients import KafkaClients
from bcs.ops.dlq.reading import DeadLetterIndex, kafka_answers
from bcs.ops.dlq.replaying import operators_producer
from bcs.ops.dlq.selection import parse_timestamp
from bcs.wire.dead_letters.decode import DeadLetterPosition, purge_key
from bcs.wire.published import SERVICE

# The second attempt is for connections that break for other reasons.
_TRIES = 2
_LATEST_MS = 253_402_300_799_999  # the end of the year 9999; Kafka accepts any number


def last_to_purge(
    index: DeadLetterIndex, before: datetime | None, services: Collection[str] = (SERVICE,)
) -> dict[tuple[str, int], int]:
    """The last offset to delete in each partition. A dead letter that stays keeps everything after it.

    An unreadable record has only the time of the Kafka record.

    :param before: dead letters from this time or later stay; None deletes all times.
    :param services: dead letters of other services stay.
    """
    stays: dict[tuple[str, int], int] = {}
    times = {position: parse_timestamp(dead_letter.timestamp) for position, dead_letter in index.dead_letters.items()}
    for position, junk in index.unreadable.items():
        times[position] = datetime_of(min(max(junk.timestamp_ms, 0), _LATEST_MS) * 1000)
    for position, time in times.items():
        dead_letter = index.dead_letters.get(position)
        of_others = dead_letter is not None and dead_letter.service not in services
        if of_others or (before is not None and time >= before):
            place = (position.topic, position.partition)
            stays[place] = min(position.offset, stays.get(place, position.offset))
    last: dict[tuple[str, int], int] = {}
    for position in (*index.dead_letters, *index.unreadable):
        place = (position.topic, position.partition)
        if position.offset < stays.get(place, position.offset + 1):
            last[place] = max(position.offset, last.get(place, 0))
    return last


def purged(positions: Iterable[DeadLetterPosition], last: dict[tuple[str, int], int]) -> list[DeadLetterPosition]:
    """The positions that would be deleted."""
    return [each for each in positions if each.offset <= last.get((each.topic, each.partition), -1)]


async def purge(settings: Settings, last: dict[tuple[str, int], int]) -> bool:
    """Delete everything up to and including these offsets.

    Some brokers, such as the one of `bcs dev`, can't delete records. They get purge markers, and readers ignore all
    dead letters up to the offset in such a marker.

    :returns: False if purge markers were written.
    :raises KafkaUnavailable: Kafka does not answer, or can't delete.
    """
    async with operators_admin(settings) as admin:
        with kafka_answers(), anyio.fail_after(settings.kafka_request_timeout_seconds):
            deleted = await delete_records(admin, last)
    if not deleted:
        await _mark(settings, last)
    return deleted


@asynccontextmanager
async def operators_admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client.

    :raises KafkaUnavailable: Kafka does not answer.
    """
    admin = AIOKafkaAdminClient(**KafkaClients.of(settings).options())
    try:
        with kafka_answers():
            await start(admin, settings.kafka_bootstrap_servers, settings.kafka_request_timeout_seconds)
        yield admin
    finally:
        with anyio.CancelScope(shield=True):
            await admin.close()


async def delete_records(admin: AIOKafkaAdminClient, last: Mapping[tuple[str, int], int]) -> bool:
    """Delete everything up to and including these offsets; False if the broker does not support this."""
    wanted = {TopicPartition(*place): RecordsToDelete(offset + 1) for place, offset in last.items()}
    for _ in range(_TRIES):
        try:
            await admin.delete_records(wanted)
        except (NotImplementedError, UnsupportedVersionError):
            return False
        except (KafkaConnectionError, NodeNotReadyError):
            # The embedded broker does not support the request, and closes the connection. Other requests still work.
            await admin.list_topics()
        else:
            return True
    return False


async def _mark(settings: Settings, last: Mapping[tuple[str, int], int]) -> None:
    async with operators_producer(settings) as producer:
        with kafka_answers():
            for (topic, partition), offset in last.items():
                await producer.send_and_wait(topic, None, purge_key(offset), partition)
