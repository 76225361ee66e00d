"""A membership in the consumer group without Kafka: what is handed to it is decoded and delivered to a list."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

from aiokafka import TopicPartition

from bcs.actors.clocks import Clocks
from bcs.actors.dead_letters import DeadLetters
from bcs.actors.ingest.in_flight import InFlight
from bcs.actors.ingest.intake import Intake
from bcs.actors.ingest.reading import EventReader
from bcs.actors.ingest.session import PollSession
from bcs.actors.ingest.skip_orders import SkipOrders
from bcs.actors.messages import ApplyFacts
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.kafka.status import KafkaStatus
from bcs.storage.memory import MemoryOutbox
from bcs.wire.decoding import EventDecoder
from tests.support.runtimes import nothing_erased, runtime_with


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


def session_of(
    consumer: Consumer, delivered: list[int], store_time_us: Callable[[str], Awaitable[int]], **overrides: object
) -> PollSession:
    """A membership that notes the offset of each message whose facts it delivers.

    :param overrides: settings that stand above the usual ones.
    """

    async def deliver(_: str, command: ApplyFacts) -> None:
        assert command.token
        delivered.append(command.token.message.offset)

    runtime = runtime_with(**overrides)
    intake = Intake(
        runtime=runtime,
        reader=EventReader(
            decoder=EventDecoder(PLATFORM_PHASES),
            clocks=Clocks(now=runtime.now, store_time_us=store_time_us, max_skew_seconds=600),
            skip_orders=SkipOrders(store=None, instance="test", now=runtime.now),
            now=runtime.now,
        ),
        in_flight=InFlight(settings=runtime.settings, deliver=deliver),
        dead_letters=DeadLetters(outbox=MemoryOutbox(100, time.monotonic), runtime=runtime, is_erased=nothing_erased),
        status=KafkaStatus(),
    )
    context = SimpleNamespace(heartbeat=lambda: None, name="intake")
    return intake.session(cast("Any", context), cast("Any", consumer))
