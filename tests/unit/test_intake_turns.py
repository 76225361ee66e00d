"""A poll of large messages does not block the event loop."""

from __future__ import annotations

import time

import anyio
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from anyio.lowlevel import checkpoint

from bcs.actors.messages import message_of
from bcs.wire import topics
from tests.support.events import registered, spellchecked
from tests.support.poll_sessions import Consumer, session_of

pytestmark = pytest.mark.anyio

KEY = TopicPartition(topics.SPELLCHECK_COMPLETED, 0)
LARGE_BYTES = 130 * 1024


def record(offset: int, *, size_bytes: int = 0, headers: tuple[tuple[str, bytes], ...] = ()) -> ConsumerRecord:
    value = spellchecked("batch", "essay").value.ljust(size_bytes)
    return ConsumerRecord(*KEY, offset, 1, 0, None, value, None, 0, len(value), headers)


async def store_time_us(_batch_id: str) -> int:
    return time.time_ns() // 1000


@pytest.mark.parametrize(("size_bytes", "messages"), [(LARGE_BYTES, 9), (0, 450)])
async def test_delivery_yields_after_large_messages_and_after_many_small_ones(size_bytes: int, messages: int) -> None:
    delivered: list[int] = []
    session = session_of(Consumer(KEY, 0), delivered, store_time_us)
    await session.on_partitions_assigned([KEY])
    seen: list[int] = []

    async def others() -> None:
        while len(delivered) < messages:
            seen.append(len(delivered))
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(others)
        records = [record(offset, size_bytes=size_bytes) for offset in range(messages)]
        await session.delivery.deliver_partition(KEY, records, session.tracker.epoch(*KEY))
    assert delivered == list(range(messages))
    assert seen == [messages // 9 * turn for turn in range(1, 9)]


async def test_the_polls_after_a_large_poll_are_smaller() -> None:
    session = session_of(Consumer(KEY, 0), [], store_time_us)
    session._adjust_poll_size([[record(0)] * 500])
    assert session._per_poll.now == 500
    session._adjust_poll_size([[record(0, size_bytes=LARGE_BYTES)] * 50, [record(1, size_bytes=LARGE_BYTES)] * 50])
    assert session._per_poll.now == 50
    for _ in range(50):
        session._adjust_poll_size([[record(0)] * 50])
    assert session._per_poll.now == 500


@pytest.mark.parametrize("budget", ["intake_max_in_flight", "intake_max_in_flight_bytes", "intake_max_in_flight_facts"])
async def test_reading_pauses_while_a_limit_of_messages_in_flight_is_reached(budget: str) -> None:
    essays = [f"essay-{number}" for number in range(30)]
    event = registered("batch", essays)
    first = ConsumerRecord(topics.ESSAYS_REGISTERED, 0, 0, 1, 0, None, event.value, None, 0, len(event.value), ())
    weighs = {"intake_max_in_flight": 1, "intake_max_in_flight_bytes": len(event.value)}.get(budget, 1 + len(essays))
    for limit, waits in ((weighs, True), (weighs + 1, False)):
        session = session_of(Consumer(KEY, 0), [], store_time_us, **{budget: limit})
        key = TopicPartition(topics.ESSAYS_REGISTERED, 0)
        await session.on_partitions_assigned([key])
        await session.delivery.deliver_partition(key, [first], session.tracker.epoch(*key))
        assert session.delivery.must_pause == waits


async def test_reading_pauses_until_the_dead_letters_are_stored() -> None:
    session = session_of(Consumer(KEY, 0), [], store_time_us)
    await session.on_partitions_assigned([KEY])
    junk = ConsumerRecord(*KEY, 0, 1, 0, None, b"junk", None, 0, 4, ())
    await session.delivery.deliver_partition(KEY, [junk], session.tracker.epoch(*KEY))
    assert session.delivery.must_pause
    assert session.tracker.to_commit() == {}
    await session.delivery.store_refused()
    assert not session.delivery.must_pause
    assert session.tracker.to_commit() == {tuple(KEY): 1}


def test_a_message_keeps_the_first_thousand_of_its_headers() -> None:
    """A megabyte has room for 300,000."""
    headers = tuple((f"header-{number}", b"") for number in range(5000))
    message = message_of(record(7, headers=headers))
    assert (message.headers, message.headers_left_out) == (headers[:1000], 4000)
    assert message_of(record(7, headers=headers[:1000])).headers_left_out == 0
