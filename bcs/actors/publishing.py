"""Hands messages to a Kafka producer, and tells of each what became of it.

Partitions go side by side, the messages of one in turn: a partition without a leader, for which the producer waits,
holds up no other. A task for every message would do that too, and cost as much again as the message.

The producer puts several messages of a partition into one batch, and the broker takes or refuses a batch as a whole. To
find the message that is to blame, those of a refused batch are sent once more, each alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import zip_longest

import anyio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from bcs.kafka.broker_errors import may_be_about_one_record
from bcs.storage.ports import LeasedMessage
from bcs.wire.published import OutboundMessage

OnResult = Callable[[LeasedMessage, BaseException | None], None]
"""Is told of each message: acknowledged, or why not."""

_partitioner = DefaultPartitioner()


async def publish_all(
    producer: AIOKafkaProducer,
    leased: Sequence[LeasedMessage],
    timeout_seconds: float,
    on_result: OnResult,
    *,
    alone: bool = False,
) -> None:
    """Publish messages, within three times the timeout; none of them without a note, unless cancelled.

    :param timeout_seconds: of a request to a broker, as the producer has it.
    :param alone: each message in a batch of its own. This takes a producer that is not idempotent: with another, a
        refused batch leaves a gap in the sequence, and the batches behind it are refused for the gap.
    """
    by_topic: dict[str, list[LeasedMessage]] = {}
    for entry in leased:
        by_topic.setdefault(entry.message.topic, []).append(entry)
    async with anyio.create_task_group() as group:
        for topic, entries in by_topic.items():
            group.start_soon(_publish_topic, producer, topic, entries, timeout_seconds, on_result, alone)


async def _publish_topic(
    producer: AIOKafkaProducer,
    topic: str,
    entries: Sequence[LeasedMessage],
    timeout_seconds: float,
    on_result: OnResult,
    alone: bool,
) -> None:
    try:
        with anyio.fail_after(timeout_seconds):
            partitions = sorted(await producer.partitions_for(topic))
    except (KafkaError, OSError) as error:
        for entry in entries:
            on_result(entry, error)
        return
    by_partition: dict[int, list[LeasedMessage]] = {}
    for entry in entries:
        # As the producer would choose.
        partition = _partitioner(entry.message.key, partitions, partitions)
        by_partition.setdefault(partition, []).append(entry)
    async with anyio.create_task_group() as group:
        for partition, messages in by_partition.items():
            group.start_soon(_publish_partition, producer, partition, messages, timeout_seconds, on_result, alone)


async def _publish_partition(
    producer: AIOKafkaProducer,
    partition: int,
    entries: Sequence[LeasedMessage],
    timeout_seconds: float,
    on_result: OnResult,
    alone: bool,
) -> None:
    acknowledgements: list[asyncio.Future[object]] = []
    try:
        with anyio.move_on_after(timeout_seconds * 2):
            for entry in entries:
                # One by one, for those before a cancellation to be known.
                acknowledgement = await _send(producer, entry.message, partition)
                acknowledgements.append(acknowledgement)
                if alone:
                    await asyncio.wait([acknowledgement])
                if _blocks_later_messages(acknowledgement):
                    break  # those behind it would wait for as long, one after the other
            for acknowledgement in acknowledgements:
                if not acknowledgement.done():
                    # To give up must not cancel it: aiokafka still has to find it as it was.
                    await asyncio.wait([acknowledgement])
        for entry, acknowledgement in zip_longest(entries, acknowledgements):
            if acknowledgement is None or not acknowledgement.done() or acknowledgement.cancelled():
                on_result(entry, TimeoutError("no acknowledgement in time"))
            else:
                on_result(entry, acknowledgement.exception())
    finally:
        for acknowledgement in acknowledgements:
            # Or asyncio would complain that nobody looked at it.
            acknowledgement.add_done_callback(_retrieve_exception)


async def _send(producer: AIOKafkaProducer, message: OutboundMessage, partition: int) -> asyncio.Future[object]:
    """The acknowledgement to come; where the message was not even taken, one that failed."""
    try:
        future: asyncio.Future[object] = await producer.send(
            message.topic, message.value, message.key, partition, headers=list(message.headers)
        )
    except (KafkaError, OSError) as error:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(error)
    return future


def _blocks_later_messages(acknowledgement: asyncio.Future[object]) -> bool:
    if not acknowledgement.done() or acknowledgement.cancelled():
        return False
    error = acknowledgement.exception()
    return error is not None and not may_be_about_one_record(error)


def _retrieve_exception(acknowledgement: asyncio.Future[object]) -> None:
    if not acknowledgement.cancelled():
        acknowledgement.exception()
