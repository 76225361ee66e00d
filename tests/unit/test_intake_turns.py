"""A poll of large messages does not hold up the rest of the process until it has taken all of them."""

from __future__ import annotations

import time

import anyio
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from anyio.lowlevel import checkpoint

from bcs.actors.messages import message_of
from bcs.contracts import topics
from tests.support.consumption import Consumer, consumption_of
from tests.support.events import spellchecked

pytestmark = pytest.mark.anyio

KEY = TopicPartition(topics.SPELLCHECK_COMPLETED, 0)
LARGE_BYTES = 130 * 1024


def record(offset: int, *, size_bytes: int = 0, headers: tuple[tuple[str, bytes], ...] = ()) -> ConsumerRecord:
    value = spellchecked("batch", "essay").value.ljust(size_bytes)
    return ConsumerRecord(*KEY, offset, 1, 0, None, value, None, 0, len(value), headers)


async def store_time_us() -> int:
    return time.time_ns() // 1000


@pytest.mark.parametrize(("size_bytes", "messages"), [(LARGE_BYTES, 9), (0, 900)])
async def test_a_poll_gives_way_between_large_messages_and_many_small_ones(size_bytes: int, messages: int) -> None:
    delivered: list[int] = []
    consumption = consumption_of(Consumer(KEY, 0), delivered, store_time_us)
    await consumption.on_partitions_assigned([KEY])
    seen: list[int] = []

    async def others() -> None:
        while len(delivered) < messages:
            seen.append(len(delivered))
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(others)
        records = [record(offset, size_bytes=size_bytes) for offset in range(messages)]
        await consumption._take(KEY, records, consumption._tracker.epoch(*KEY))
    assert delivered == list(range(messages))
    assert seen == [messages // 9 * turn for turn in range(1, 9)]


def test_a_message_keeps_the_first_thousand_of_its_headers() -> None:
    """A megabyte has room for 300,000."""
    headers = tuple((f"header-{number}", b"") for number in range(5000))
    message = message_of(record(7, headers=headers))
    assert (message.headers, message.headers_left_out) == (headers[:1000], 4000)
    assert message_of(record(7, headers=headers[:1000])).headers_left_out == 0
