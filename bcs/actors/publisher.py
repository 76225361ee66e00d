"""The publisher: drains the outbox to Kafka, and forgets an entry only once the broker has acknowledged it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import anyio
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from bcs.actors.kafka import close
from bcs.actors.messages import OutboxGrew
from bcs.actors.patience import patiently
from bcs.contracts.published import OutboundMessage
from bcs.domain.errors import StoreError
from bcs.settings import Settings
from bcs.store.base import LeasedMessage, Outbox
from bcs.supervision import ActorContext
from bcs.telemetry import Telemetry

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.stdlib.get_logger("bcs.publisher")

_LEASE_LIMIT = 200
_CLOSE_SECONDS = 3.0
_FRUITLESS_SECONDS = 0.5
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes what is in the outbox. One instance serves all incarnations of the actor.

    What one incarnation had in hand when it died, the next one publishes again: every copy carries the same event id.

    :param retry_maximum_seconds: the longest wait between tries while Kafka or the store is away.
    """

    settings: Settings
    outbox: Outbox
    telemetry: Telemetry
    retry_maximum_seconds: float

    async def run(self, context: ActorContext[OutboxGrew]) -> None:
        """Publish until asked to stop; then until the outbox is empty, or Kafka turns out to be away.

        What is left stays in the outbox, for the next process.
        """
        # Ready without Kafka: the rest of the service does not depend on it.
        context.ready()
        leased = await self._persist(context, self.outbox.resume, _LEASE_LIMIT)
        while True:
            try:
                producer = await self._connect(context)
            except (KafkaError, OSError):
                return  # a stop was asked for
            try:
                while True:
                    context.beat()
                    leased = leased or await self._persist(context, self._next)
                    if leased:
                        delivered = await self._publish(context, producer, leased)
                        leased = []
                        if not delivered:
                            if context.stopping:
                                return
                            # Kafka is away, or the producer is past recovery: go on with a new one.
                            await anyio.sleep(_FRUITLESS_SECONDS)
                            break
                    elif context.stopping:
                        return
                    else:
                        await self._wait_for_more(context)
            finally:
                await close(producer, _CLOSE_SECONDS)

    async def _connect(self, context: ActorContext[OutboxGrew]) -> AIOKafkaProducer:
        retrying = patiently(
            context,
            KafkaError,
            OSError,
            maximum_seconds=self.retry_maximum_seconds,
            doing="connect the producer",
            until_stop=True,
        )
        return await retrying(self._start_producer)

    async def _start_producer(self) -> AIOKafkaProducer:
        settings = self.settings
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            client_id="batch-conductor-service",
            acks="all",
            enable_idempotence=settings.kafka_enable_idempotence,
            request_timeout_ms=int(settings.kafka_request_timeout_seconds * 1000),
            metadata_max_age_ms=int(settings.kafka_metadata_max_age_seconds * 1000),
            max_request_size=settings.kafka_max_message_bytes,
        )
        started = False
        try:
            with anyio.fail_after(settings.kafka_request_timeout_seconds):
                await producer.start()
            started = True
        finally:
            if not started:
                await close(producer, _CLOSE_SECONDS)
        return producer

    async def _next(self) -> list[LeasedMessage]:
        fresh = await self.outbox.lease(_LEASE_LIMIT)
        return fresh or await self.outbox.recover(self.settings.outbox_takeover_seconds, _LEASE_LIMIT)

    async def _wait_for_more(self, context: ActorContext[OutboxGrew]) -> None:
        with anyio.move_on_after(self.settings.outbox_poll_interval_seconds):
            context.settle(await context.receive())

    async def _publish(
        self, context: ActorContext[OutboxGrew], producer: AIOKafkaProducer, leased: Sequence[LeasedMessage]
    ) -> bool:
        """Publish messages side by side, so that one that hangs holds up no other; whether any got through."""
        delivered: list[str] = []
        refused: list[tuple[LeasedMessage, str]] = []
        failed: list[LeasedMessage] = []

        async def publish_one(entry: LeasedMessage) -> None:
            try:
                await self._send(producer, entry.message)
            except _TOO_LARGE as error:
                refused.append((entry, f"{type(error).__name__}: {error}"))
            except (KafkaError, OSError) as error:
                failed.append(entry)
                self.telemetry.publish_failures.labels(entry.message.kind).inc()
                log.info("publish_failed", topic=entry.message.topic, error=f"{type(error).__name__}: {error}")
            else:
                delivered.append(entry.entry_id)
                self.telemetry.published.labels(entry.message.kind).inc()

        async with anyio.create_task_group() as group:
            for entry in leased:
                group.start_soon(publish_one, entry)

        await self._persist(context, self.outbox.settle, delivered)
        for entry, problem in refused:
            await self._persist(context, self.outbox.park, entry, problem)
            self.telemetry.parked.labels(entry.message.kind).inc()
            log.error("message_parked", topic=entry.message.topic, problem=problem)
        if failed:
            # To the end of the queue: a topic that can't be written must not keep others from theirs.
            await self._persist(context, self.outbox.requeue, failed)
        return bool(delivered or refused)

    async def _send(self, producer: AIOKafkaProducer, message: OutboundMessage) -> None:
        with anyio.fail_after(self.settings.kafka_request_timeout_seconds * 2):
            try:
                await producer.send_and_wait(message.topic, message.value, message.key)
            except _TOO_LARGE:
                if message.reduced is None:
                    raise
                await producer.send_and_wait(message.topic, message.reduced, message.key)

    async def _persist(
        self, context: ActorContext[OutboxGrew], change: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        retrying = patiently(context, StoreError, maximum_seconds=self.retry_maximum_seconds, doing="reach the outbox")
        return await retrying(change, *args, **kwargs)
