"""A rebalance may come while the store is asked for its time: then the message belongs to another ownership."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import anyio
import pytest
from aiokafka import ConsumerRecord, TopicPartition

from bcs.errors import StoreUnavailable
from bcs.observability.failpoints import FailPoint, fail_points
from bcs.wire import topics
from tests.support.poll_sessions import Consumer, session_of

pytestmark = pytest.mark.anyio

KEY = TopicPartition(topics.SPELLCHECK_COMPLETED, 0)
FIRST, AHEAD = 100, 103


class Asked:
    """A store whose clock answers once the test allows it."""

    def __init__(self, *, away: bool) -> None:
        self.away, self.asked, self.go_on = away, anyio.Event(), anyio.Event()

    async def time_us(self, _batch_id: str) -> int:
        self.asked.set()
        await self.go_on.wait()
        if self.away:
            raise StoreUnavailable("redis", "away")
        return int(datetime.now(UTC).timestamp() * 1_000_000)


def message(offset: int, at: str) -> ConsumerRecord:
    data = {"entity_id": f"e{offset}", "batch_id": "b", "status": "completed", "timestamp": at}
    value = json.dumps({"data": data}).encode()
    return ConsumerRecord(KEY.topic, KEY.partition, offset, 1, 0, None, value, None, 0, len(value), ())


@pytest.mark.parametrize("away", [True, False], ids=["the store is away", "the event is ahead"])
@pytest.mark.parametrize("comes_back", [True, False], ids=["given back", "given to another"])
async def test_a_rebalance_while_the_store_time_is_read_loses_no_message(away: bool, comes_back: bool) -> None:
    consumer, store, delivered = Consumer(KEY, AHEAD + 1), Asked(away=away), list[int]()
    session = session_of(consumer, delivered, store.time_us)
    await session.on_partitions_assigned([KEY])
    tracker, taken = session.tracker, list[bool]()
    messages = [message(offset, "2026-01-01T00:00:00Z") for offset in range(FIRST, AHEAD)]
    messages.append(message(AHEAD, "2031-01-01T00:00:00Z"))

    async def take() -> None:
        taken.append(await session.delivery.deliver_partition(KEY, messages, tracker.epoch(*KEY)))

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await store.asked.wait()
        tracker.revoke([tuple(KEY)])  # nothing of what was handed over is durable
        if comes_back:
            consumer.position = FIRST  # where the group has committed
            await session.on_partitions_assigned([KEY])
        store.go_on.set()
    assert delivered == list(range(FIRST, AHEAD))
    assert taken == [False]
    assert consumer.position == (FIRST if comes_back else AHEAD + 1), "nobody jumps over what is to be read again"
    assert len(session.delivery._refused) == 0
    assert tracker.in_flight == 0
    assert tracker.to_commit() == {}


async def test_a_message_that_waits_for_the_clocks_is_read_again() -> None:
    consumer, store, delivered = Consumer(KEY, AHEAD + 1), Asked(away=True), list[int]()
    session = session_of(consumer, delivered, store.time_us)
    await session.on_partitions_assigned([KEY])
    store.go_on.set()
    epoch = session.tracker.epoch(*KEY)
    assert await session.delivery.deliver_partition(KEY, [message(AHEAD, "2031-01-01T00:00:00Z")], epoch) is False
    assert consumer.position == AHEAD
    assert delivered == []


async def test_a_rebalance_between_the_poll_and_its_delivery_delivers_nothing() -> None:
    consumer, store, delivered = Consumer(KEY, FIRST), Asked(away=False), list[int]()
    session = session_of(consumer, delivered, store.time_us)
    await session.on_partitions_assigned([KEY])

    async def rebalance(point: FailPoint, _: str) -> None:
        assert point is FailPoint.INTAKE_RECEIVED
        session.tracker.revoke([tuple(KEY)])
        await session.on_partitions_assigned([KEY])

    with fail_points(rebalance):
        await session.delivery.deliver_poll({KEY: [message(FIRST, "2026-01-01T00:00:00Z")]})
    assert delivered == []
    assert session.tracker.to_commit() == {}
