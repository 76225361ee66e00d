"""Sends messages with a Kafka producer, and reports the result of each.

Partitions are written concurrently, the messages of one partition in turn. So a partition without a leader, for which
the producer waits, blocks no other partition. A task for every message would double the cost of a message.

The producer puts several messages of a partition into one record batch, and the broker accepts or refuses the whole
batch. To find the message that is the cause, the messages of a refused batch are sent again, each alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import anyio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from bcs.kafka.broker_errors import may_be_about_one_record
from bcs.storage.ports import LeasedMessage
from bcs.wire.published import Headers

OnResult = Callable[[LeasedMessage, BaseException | None], None]
"""Called with the result of a message: None if the broker acknowledged it, otherwise the error."""

HeadersOf = Callable[[LeasedMessage], Headers]
"""Called for each message before it is sent. Returns the headers to send."""

_partitioner = DefaultPartitioner()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sending:
    """How messages are sent; see `publish_all`."""

    producer: AIOKafkaProducer
    timeout_seconds: float
    on_result: OnResult
    headers_of: HeadersOf
    alone: bool


def _own_headers(entry: LeasedMessage) -> Headers:
    return entry.message.headers


async def publish_all(
    producer: AIOKafkaProducer,
    leased: Sequence[LeasedMessage],
    timeout_seconds: float,
    on_result: OnResult,
    *,
    alone: bool = False,
    headers_of: HeadersOf = _own_headers,
) -> None:
    """Publish messages, within three times the timeout.

    :param timeout_seconds: the request timeout of the producer.
    :param on_result: called once for each message, unless cancelled.
    :param alone: True sends each message in its own record batch. The producer must not be idempotent then: a refused
        batch would leave a gap in the sequence numbers, and the broker would refuse the next batches for the gap.
    """
    by_topic: dict[str, list[LeasedMessage]] = {}
    for entry in leased:
        by_topic.setdefault(entry.message.topic, []).append(entry)
    sending = _Sending(
        producer=producer, timeout_seconds=timeout_seconds, on_result=on_result, headers_of=headers_of, alone=alone
    )
    async with anyio.create_task_group() as group:
        for topic, entries in by_topic.items():
            group.start_soon(_publish_topic, sending, topic, entries)


async def _publish_topic(sending: _Sending, topic: str, entries: Sequence[LeasedMessage]) -> None:
    try:
        with anyio.fail_after(sending.timeout_seconds):
            partitions = sorted(await sending.producer.partitions_for(topic))
    except (KafkaError, OSError) as error:
        for entry in entries:
            sending.on_result(entry, error)
        return
    by_partition: dict[int, list[LeasedMessage]] = {}
    for entry in entries:
        # The same choice as in the producer.
        partition = _partitioner(entry.message.key, partitions, partitions)
        by_partition.setdefault(partition, []).append(entry)
    async with anyio.create_task_group() as group:
        for partition, messages in by_partition.items():
            group.start_soon(_publish_partition, sending, partition, messages)


async def _publish_partition(sending: _Sending, partition: int, entries: Sequence[LeasedMessage]) -> None:
    acknowledgements: list[asyncio.Future[object]] = []
    try:
        with anyio.move_on_after(sending.timeout_seconds * 2):
            for entry in entries:
                # One by one, so that the earlier acknowledgements are known after a timeout.
                acknowledgement = await _send(sending, entry, partition)
                acknowledgements.append(acknowledgement)
                if sending.alone:
                    await asyncio.wait([acknowledgement])
                if _blocks_later_messages(acknowledgement):
                    break  # each later message would wait as long as this message
            for acknowledgement in acknowledgements:
                if not acknowledgement.done():
                    # `wait` does not cancel the future at a timeout: aiokafka still needs it.
                    await asyncio.wait([acknowledgement])
        for entry, acknowledgement in zip_longest(entries, acknowledgements):
            if acknowledgement is None or not acknowledgement.done() or acknowledgement.cancelled():
                sending.on_result(entry, TimeoutError("no acknowledgement in time"))
            else:
                sending.on_result(entry, acknowledgement.exception())
    finally:
        for acknowledgement in acknowledgements:
            # Without this, asyncio logs that the exception was never retrieved.
            acknowledgement.add_done_callback(_retrieve_exception)


async def _send(sending: _Sending, entry: LeasedMessage, partition: int) -> asyncio.Future[object]:
    """Give a message to the producer.

    :returns: the future acknowledgement; already failed if the producer did not accept the message.
    """
    message, headers = entry.message, list(sending.headers_of(entry))
    try:
        future: asyncio.Future[object] = await sending.producer.send(
            message.topic, message.value, message.key, partition, headers=headers
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
