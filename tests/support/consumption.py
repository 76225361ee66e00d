"""A membership in the consumer group without Kafka: what is handed to it is decoded and delivered to a list."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from aiokafka import TopicPartition

from bcs.actors.clocks import Clocks
from bcs.actors.consumption import Consumption
from bcs.actors.kafka import KafkaStatus
from bcs.actors.skips import Skips
from bcs.actors.under_way import UnderWay
from bcs.actors.waits import Waits
from bcs.contracts.decoding import EventDecoder
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.settings import Settings


class Consumer:
    """Stands for aiokafka's.

    :param position: where the next poll begins.
    """

    def __init__(self, key: TopicPartition, position: int) -> None:
        self.key, self.position = key, position

    def assignment(self) -> set[TopicPartition]:
        """Its one partition."""
        return {self.key}

    def seek(self, _: TopicPartition, offset: int) -> None:
        """Begin there with the next poll."""
        self.position = offset


def consumption_of(
    consumer: Consumer, delivered: list[int], store_time_us: Callable[[], Awaitable[int]], **overrides: object
) -> Consumption:
    """A membership that notes the offset of each message whose facts it delivers.

    :param overrides: settings that stand above the usual ones.
    """

    async def deliver(_: str, command: Any) -> None:
        delivered.append(command.receipt.message.offset)

    def now() -> datetime:
        return datetime.now(UTC)

    intake = SimpleNamespace(
        settings=Settings.model_validate(overrides),
        epochs=itertools.count(1),
        decoder=EventDecoder(PLATFORM_PHASES),
        clocks=Clocks(now=now, store_time_us=store_time_us, max_skew_seconds=600),
        under_way=UnderWay(),
        batches=SimpleNamespace(deliver=deliver),
        status=KafkaStatus(),
        waits=Waits(now),
        skips=Skips(store=None, instance="test", now=now),
        now=now,
    )
    context = SimpleNamespace(beat=lambda: None, name="intake")
    return Consumption(cast("Any", intake), cast("Any", context), cast("Any", consumer))
