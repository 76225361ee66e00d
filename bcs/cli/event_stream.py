"""Produces events to Kafka, and follows the messages that BCS publishes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass

import anyio
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from bcs.cli.event_files import EventMessage
from bcs.config.settings import Settings
from bcs.errors import KafkaUnavailable, PartitionStalled, UnknownTopic
from bcs.kafka.causes import start
from bcs.kafka.clients import KafkaClients
from bcs.kafka.isolation import IsolatingConsumer
from bcs.kafka.status import close
from bcs.ops.dlq.reading import existing_partitions, kafka_answers, reading_clients
from bcs.wire.dead_letters.decode import DeadLetterPosition

_CLIENT_ID = "batch-conductor-events"
_POLL_MS = 300
_QUIET_MS = 2000
_CLOSE_SECONDS = 2.0


async def produce(settings: Settings, messages: Sequence[EventMessage]) -> list[DeadLetterPosition]:
    """Produce messages in their order and without headers, as the platform does.

    :returns: the position of each message.
    :raises UnknownTopic: Kafka does not have a topic; nothing was sent.
    :raises KafkaUnavailable: Kafka does not answer, or refuses a message.
    """
    timeout_seconds = settings.kafka_request_timeout_seconds
    clients = KafkaClients.of(settings)
    admin = AIOKafkaAdminClient(**clients.options(), client_id=_CLIENT_ID)
    # The producer is not idempotent: some brokers do not support this, and an event that arrives twice is harmless.
    producer = AIOKafkaProducer(
        **clients.options(),
        client_id=_CLIENT_ID,
        acks="all",
        request_timeout_ms=int(timeout_seconds * 1000),
        max_request_size=settings.kafka_max_message_bytes,
    )
    try:
        with kafka_answers(), anyio.fail_after(2 * timeout_seconds):
            await start(admin, settings.kafka_bootstrap_servers, timeout_seconds)
            wanted = {message.event_type.topic for message in messages}
            # Some brokers create a missing topic if a producer asks about it.
            if missing := wanted - {partition.topic for partition in await existing_partitions(admin, wanted)}:
                raise UnknownTopic(tuple(sorted(missing)))
            await producer.start()
        taken = []
        for message in messages:
            with kafka_answers(), anyio.fail_after(2 * timeout_seconds):
                record = await producer.send_and_wait(message.event_type.topic, message.value, message.key)
            taken.append(DeadLetterPosition(record.topic, record.partition, record.offset))
        return taken
    finally:
        with anyio.CancelScope(shield=True):
            await close(producer, _CLOSE_SECONDS)
            await admin.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class TailOptions:
    """The messages that `tail` shows.

    :param last: how many existing messages are shown.
    :param follow: True to wait for new messages.
    """

    topics: Collection[str]
    last: int
    follow: bool


async def tail(settings: Settings, options: TailOptions) -> AsyncGenerator[ConsumerRecord | PartitionStalled, None]:
    """The last messages on topics by their time, then new messages, and each partition that can't be read further.

    :raises UnknownTopic: Kafka has none of the topics.
    :raises KafkaUnavailable: Kafka does not answer.
    """
    timeout_seconds = settings.kafka_request_timeout_seconds
    async with reading_clients(settings, _CLIENT_ID) as (consumer, admin):
        with kafka_answers(), anyio.fail_after(timeout_seconds):
            partitions = await existing_partitions(admin, options.topics)
            if not partitions:
                raise UnknownTopic(tuple(sorted(options.topics)))
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            firsts = await consumer.beginning_offsets(partitions)
            for partition in partitions:
                consumer.seek(partition, max(firsts[partition], ends[partition] - options.last))
        existing = await _until(consumer, ends, timeout_seconds)
        for record in sorted(existing, key=lambda record: record.timestamp)[-options.last :] if options.last else ():
            yield record
        reported: set[TopicPartition] = set()
        while True:
            for partition in sorted(consumer.stalled.keys() - reported):
                stall = consumer.stalled[partition]
                yield PartitionStalled(partition.topic, partition.partition, stall.offset, stall.cause)
            reported = set(consumer.stalled)
            if not options.follow:
                return
            for record in await _next(consumer, admin, timeout_seconds):
                yield record


async def _until(
    consumer: IsolatingConsumer, ends: dict[TopicPartition, int], timeout_seconds: float
) -> list[ConsumerRecord]:
    """All messages from the positions of the consumer to the ends."""
    read: list[ConsumerRecord] = []
    last_progress_at, reached = anyio.current_time(), False
    while True:
        with kafka_answers(), anyio.fail_after(timeout_seconds):
            polled = await consumer.getmany(timeout_ms=_POLL_MS)
        for records in polled.values():
            read += records
        # One more poll comes after the ends, because the embedded broker reports some ends that are too low.
        if reached:
            return read
        with kafka_answers(), anyio.fail_after(timeout_seconds):
            reached = all([key in consumer.stalled or await consumer.position(key) >= end for key, end in ends.items()])
        if polled or reached:
            last_progress_at = anyio.current_time()
        elif anyio.current_time() > last_progress_at + timeout_seconds:
            # The consumer itself would wait forever for a broker.
            raise KafkaUnavailable(f"no message arrived for {timeout_seconds:g} s, although there are more")


async def _next(
    consumer: IsolatingConsumer, admin: AIOKafkaAdminClient, timeout_seconds: float
) -> list[ConsumerRecord]:
    """The messages of the next poll that has messages; none if Kafka answers and a partition is stalled."""
    with kafka_answers():
        polled = await consumer.getmany(timeout_ms=_QUIET_MS)
        if not polled:
            # The consumer itself would silently wait for a broker that is down.
            with anyio.fail_after(timeout_seconds):
                await admin.list_topics()
    return [record for records in polled.values() for record in records]
