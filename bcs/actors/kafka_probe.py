"""Asks Kafka for signs of life, and measures how far behind the intake is."""

from __future__ import annotations

from typing import Any

import anyio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from bcs.actors.kafka import KafkaStatus
from bcs.actors.offsets import OffsetTracker
from bcs.actors.under_way import UnderWay
from bcs.contracts import topics
from bcs.settings import Settings

_POSITION_SECONDS = 0.2


async def probe(
    consumer: AIOKafkaConsumer,
    tracker: OffsetTracker,
    under_way: UnderWay,
    status: KafkaStatus,
    settings: Settings,
) -> None:
    """Keep the status up to date until cancelled."""
    while True:
        try:
            with anyio.fail_after(settings.kafka_request_timeout_seconds):
                visible = await consumer.topics()
            status.up()
            status.miss(frozenset(topics.CONSUMED) - visible)
            status.lag = {
                key: lag for key in consumer.assignment() if (lag := await _lag(consumer, tracker, key)) is not None
            }
        except (KafkaError, OSError) as error:
            status.down(error)
        status.in_flight = under_way.messages
        await anyio.sleep(settings.kafka_probe_interval_seconds)


async def _lag(consumer: AIOKafkaConsumer, tracker: OffsetTracker, key: TopicPartition) -> int | None:
    position: Any = tracker.position(*key)
    if position is None:
        with anyio.move_on_after(_POSITION_SECONDS):
            position = await consumer.position(key)
    # A rebalance may have taken the partition meanwhile, and highwater() asserts that it has not.
    end = consumer.highwater(key) if key in consumer.assignment() else None
    return None if end is None or position is None else max(0, end - position)
