"""Reads topics from their beginning to their present end, ordered by time across all partitions."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace

import anyio
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from bcs.errors import KafkaUnavailable, UnknownTopic
from bcs.kafka.isolation import IsolatingConsumer
from bcs.ops.dlq.reading import ensure_none_stalled, existing_partitions, kafka_answers

_POLL_MS = 300
_RECORDS_PER_POLL = 1000


@dataclass(frozen=True, slots=True)
class Range:
    """The offsets to read of a partition.

    :param first: the offset of the first message.
    :param end: the offset after the last message.
    """

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class TimedRecord:
    """A message with the time at which it was written.

    :param at_ms: the time of the Kafka record. A record without a time has the time of the record before it in the
        partition, so the time is the same at each rebuild, and not later than the first reading.
    """

    record: ConsumerRecord
    at_ms: int


class OrderedTopicReader:
    """Reads topics up to their ends at the time of `open`. At most a poll and a fetch of each partition are in memory.

    :param consumer: a started consumer without a group.
    :param admin: a started admin client.
    """

    def __init__(self, consumer: IsolatingConsumer, admin: AIOKafkaAdminClient, request_timeout_seconds: float) -> None:
        self.ranges: dict[TopicPartition, Range] = {}
        self._consumer = consumer
        self._admin = admin
        self._timeout_seconds = request_timeout_seconds
        self._held: dict[TopicPartition, deque[TimedRecord]] = {}
        self._at_ms: dict[TopicPartition, int] = {}

    async def open(self, topics: Collection[str]) -> None:
        """Find the offsets to read.

        :raises KafkaUnavailable: Kafka does not answer.
        :raises UnknownTopic: Kafka does not have a topic.
        """
        with kafka_answers(), anyio.fail_after(self._timeout_seconds):
            partitions = await existing_partitions(self._admin, topics)
        if missing := sorted(set(topics) - {partition.topic for partition in partitions}):
            raise UnknownTopic(tuple(missing))
        with kafka_answers(), anyio.fail_after(self._timeout_seconds):
            self._consumer.assign(partitions)
            first = await self._consumer.beginning_offsets(partitions)
            end = await self._consumer.end_offsets(partitions)
        self.ranges = {partition: Range(first[partition], end[partition]) for partition in sorted(partitions)}

    @property
    def total(self) -> int:
        """The largest possible number of messages. Some offsets may have no message any more."""
        return sum(each.end - each.first for each in self.ranges.values())

    async def portions(self) -> AsyncIterator[list[TimedRecord]]:
        """All messages, older messages first, each partition in its order.

        So the messages that were read so far are always a possible history: a roster comes before the outcomes of its
        essays, and a failure comes before the success that followed.

        :raises KafkaUnavailable: Kafka does not answer.
        :raises PartitionStalled: a partition can't be read.
        """
        for partition, extent in self.ranges.items():
            self._held[partition], self._at_ms[partition] = deque(), 0
            if extent.first == extent.end:
                self._consumer.pause(partition)
            else:
                self._consumer.seek(partition, extent.first)
        unread = {partition for partition, extent in self.ranges.items() if extent.first < extent.end}
        heads: list[tuple[int, TopicPartition]] = []
        empty = set(unread)
        while True:
            for partition in await self._fill(empty):
                unread.discard(partition)
            heads += [(self._held[partition][0].at_ms, partition) for partition in empty & unread]
            heapq.heapify(heads)
            if not heads:
                return
            portion: list[TimedRecord] = []
            empty = set()
            while heads and not empty:
                _, partition = heads[0]
                held = self._held[partition]
                portion.append(held.popleft())
                if held:
                    heapq.heapreplace(heads, (held[0].at_ms, partition))
                else:
                    heapq.heappop(heads)
                    empty = {partition}
            yield portion

    async def _fill(self, empty: Collection[TopicPartition]) -> set[TopicPartition]:
        """Read these partitions until each has a message, and return the partitions that are read to their ends."""
        finished: set[TopicPartition] = set()
        lacking = set(empty)
        last_progress_at = anyio.current_time()
        while True:
            with kafka_answers(), anyio.fail_after(self._timeout_seconds):
                for partition in [each for each in lacking if await self._is_read(each)]:
                    # A fetch that waits for new messages of this partition would delay the others.
                    self._consumer.pause(partition)
                    lacking.discard(partition)
                    finished.add(partition)
            if not lacking:
                return finished
            with kafka_answers():
                polled = await self._consumer.getmany(*lacking, timeout_ms=_POLL_MS, max_records=_RECORDS_PER_POLL)
            ensure_none_stalled(self._consumer)
            for partition, records in polled.items():
                self._hold(partition, records)
                if self._held[partition]:
                    lacking.discard(partition)
            if polled:
                last_progress_at = anyio.current_time()
            elif anyio.current_time() > last_progress_at + self._timeout_seconds:
                # aiokafka itself would wait forever for a broker.
                raise KafkaUnavailable(f"no message arrived for {self._timeout_seconds:g} s, although there are more")

    async def _is_read(self, partition: TopicPartition) -> bool:
        return bool(await self._consumer.position(partition) >= self.ranges[partition].end)

    def _hold(self, partition: TopicPartition, records: list[ConsumerRecord]) -> None:
        extent = self.ranges[partition]
        if records[0].offset == extent.first:
            # The embedded broker at first reports ends that are too low. The first messages bring the right ends.
            end = max(extent.end, self._consumer.highwater(partition) or 0)
            extent = self.ranges[partition] = replace(extent, end=end)
        held, at_ms = self._held[partition], self._at_ms[partition]
        for record in records:
            if record.offset >= extent.end:
                break
            at_ms = record.timestamp if record.timestamp >= 0 else at_ms
            held.append(TimedRecord(record, at_ms))
        self._at_ms[partition] = at_ms
