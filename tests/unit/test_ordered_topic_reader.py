"""The order in which a rebuild reads messages, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from bcs.errors import KafkaUnavailable, PartitionStalled
from bcs.kafka.isolation import Stall
from bcs.ops.rebuild.reading import OrderedTopicReader, Range

pytestmark = pytest.mark.anyio

A, B, C = (TopicPartition("topic", partition) for partition in range(3))


class Log:
    """Stands for a consumer: partitions with the times of their messages, of which it gives two at a time.

    :param first: the offset of each partition's first message.
    """

    def __init__(self, times: Mapping[TopicPartition, list[int]], first: int = 0, silent: bool = False) -> None:
        self._times = times
        self._first = first
        self._silent = silent
        self._positions = dict.fromkeys(times, first)
        self.stalled: dict[TopicPartition, Stall] = {}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._positions[partition] = offset

    def pause(self, partition: TopicPartition) -> None:
        pass

    async def position(self, partition: TopicPartition) -> int:
        return self._positions[partition]

    def highwater(self, partition: TopicPartition) -> int:
        return self._first + len(self._times[partition])

    async def getmany(
        self, *partitions: TopicPartition, **_: int
    ) -> dict[TopicPartition, list[ConsumerRecord[Any, Any]]]:
        if self._silent:
            return {}
        polled = {}
        for partition in partitions:
            at = self._positions[partition]
            times = self._times[partition][at - self._first :][:2]
            self._positions[partition] += len(times)
            if times:
                polled[partition] = [record(partition, at + place, time) for place, time in enumerate(times)]
        return polled


def record(partition: TopicPartition, offset: int, time: int) -> ConsumerRecord[Any, Any]:
    return ConsumerRecord(partition.topic, partition.partition, offset, time, 0, None, None, None, 0, 0, ())


async def read(log: Log, ranges: Mapping[TopicPartition, Range]) -> list[tuple[int, int, int]]:
    past = OrderedTopicReader(cast("Any", log), cast("Any", None), 0.01)
    past.ranges = dict(ranges)
    return [
        (timed.record.partition, timed.record.offset, timed.at_ms)
        async for portion in past.portions()
        for timed in portion
    ]


async def test_older_messages_come_first_and_each_partition_in_its_order() -> None:
    times = {A: [10, 40, 41, 42, 43], B: [20, 5, 60], C: [1, 2, 3, 70]}
    was_read = await read(Log(times), {each: Range(0, len(times[each])) for each in times})
    assert [offset for partition, offset, _ in was_read if partition == B.partition] == [0, 1, 2]
    assert [time for *_, time in was_read] == [1, 2, 3, 10, 20, 5, 40, 41, 42, 43, 60, 70]


async def test_it_ends_where_a_partition_ended_and_begins_where_it_begins() -> None:
    times = {A: [1, 2, 3, 4], B: [1], C: []}
    ranges = {A: Range(100, 103), B: Range(100, 101), C: Range(100, 100)}
    # Behind the end there is more by now. With the first messages of A its true end is told: the last one is read too.
    was_read = await read(Log(times, first=100), ranges)
    assert [(partition, offset) for partition, offset, _ in was_read] == [
        (0, 100), (1, 100), (0, 101), (0, 102), (0, 103),
    ]  # fmt: skip


async def test_a_message_without_a_time_has_that_of_the_one_before() -> None:
    was_read = await read(Log({A: [-1, 7, -1], B: [3]}), {A: Range(0, 3), B: Range(0, 1)})
    assert was_read == [(0, 0, 0), (1, 0, 3), (0, 1, 7), (0, 2, 7)]


async def test_silence_before_the_end_is_an_outage() -> None:
    with pytest.raises(KafkaUnavailable):
        await read(Log({A: [1]}, silent=True), {A: Range(0, 1)})


async def test_a_partition_that_can_not_be_read_ends_it_with_its_name() -> None:
    log = Log({A: [1], B: [2]})
    log.stalled = {
        B: Stall(offset=7, last_offset=None, cause="the checksum is wrong", lasting=True, tries=1, retry_at=0.0)
    }
    with pytest.raises(PartitionStalled, match=r"topic/1 can't be read from offset 7 on: the checksum is wrong"):
        await read(log, {A: Range(0, 1), B: Range(0, 1)})
