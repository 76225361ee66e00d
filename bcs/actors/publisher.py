"""The publisher: moves the outbox to Kafka, and deletes an entry once the broker has acknowledged it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from bcs.actors.messages import OutboxGrew
from bcs.actors.publishing import publish_all
from bcs.actors.retry import retry
from bcs.actors.runtime import Runtime
from bcs.actors.spans import PublishSpans
from bcs.errors import StoreError, StoreUnavailable
from bcs.kafka.broker_errors import REFUSED_FOR_GOOD, TOO_LARGE, may_be_about_one_record
from bcs.kafka.causes import cause_of, start
from bcs.kafka.status import KafkaStatus, close
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.waits import CONNECT_PRODUCER
from bcs.storage.ports import LeasedMessage, Outbox
from bcs.supervision import ActorContext
from bcs.wire.dead_letters.encode import as_truncated

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.stdlib.get_logger("bcs.publisher", actor="publisher")

_LEASE_LIMIT = 200
# Under load, each round publishes all messages of this time: a round of one message costs as much as a round of fifty.
_ROUND_SECONDS = 0.05
# A round needs one request for each broker, instead of one for each 16 kB. Less than any BCS_KAFKA_MAX_MESSAGE_BYTES.
_BATCH_BYTES = 64 * 1024
_CLOSE_SECONDS = 1.0
_FRUITLESS_SECONDS = 0.5
_ACTOR = "publisher"
# The operations that the publisher may wait for.
_TAKE_OVER = "take over the outbox entries of another replica"
_USE_OUTBOX = "access the outbox"
_USE_STREAMS = "access streams of the outbox"


@dataclass(slots=True)
class _Outcome:
    """The results of messages that were sent.

    :param spans: those of the messages that are being sent.
    :param refused: messages of record batches that the broker refused.
    :param failed: messages to try again.
    :param parked: messages that the broker will never accept, each with the reason.
    """

    spans: PublishSpans
    delivered: list[LeasedMessage] = field(default_factory=list)
    refused: list[LeasedMessage] = field(default_factory=list)
    failed: list[LeasedMessage] = field(default_factory=list)
    parked: list[tuple[LeasedMessage, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Publishes the messages of the outbox. One instance serves all incarnations of the actor.

    If an incarnation dies, the next incarnation publishes its leased messages again. Every copy of a message has the
    same event id.
    """

    runtime: Runtime
    outbox: Outbox
    status: KafkaStatus

    async def run(self, context: ActorContext[OutboxGrew]) -> None:
        """Publish until a stop is requested; then until the outbox is empty, or Kafka is found to be unreachable.

        The other messages stay in the outbox, for the next process.
        """
        await hit(FailPoint.STARTING, context.name)
        # Ready without Kafka: the rest of the service does not depend on it.
        context.ready()
        unwritable: dict[str, float] = {}
        try:
            leased = await self._persist(context, self.outbox.resume, _LEASE_LIMIT)
            while True:
                producer = await self._connect(context)
                try:
                    if await self._drain(context, producer, leased, unwritable):
                        return
                finally:
                    await close(producer, _CLOSE_SECONDS)
                leased = []
        except (KafkaError, OSError, StoreError):
            if not context.stopping:
                raise
            log.info("outbox_not_drained")

    async def _drain(
        self,
        context: ActorContext[OutboxGrew],
        producer: AIOKafkaProducer,
        leased: list[LeasedMessage],
        unwritable: dict[str, float],
    ) -> bool:
        """Publish with one producer; False if a new producer is necessary to continue.

        :param unwritable: for each topic, the time before which it is not tried again. A topic that can't be written
            must not delay other topics after the first attempt.
        """
        takeover_at = anyio.current_time()
        while True:
            context.heartbeat()
            now = anyio.current_time()
            if now >= takeover_at:
                # At intervals, also under load: the entries of a dead replica must not wait for a quiet hour.
                leased += await self._take_over(context)
                takeover_at = now + self.runtime.settings.outbox_takeover_seconds / 2
            leased = leased or await self._persist(context, self.outbox.lease, _LEASE_LIMIT)
            failing = {key: str(error) for key, error in self.outbox.failing.items()}
            self.runtime.waits.keep(_ACTOR, _USE_STREAMS, failing)
            unwritable_now = [entry for entry in leased if unwritable.get(entry.message.topic, now) > now]
            if unwritable_now:
                await self._persist(context, self.outbox.requeue, unwritable_now)
            ready = [entry for entry in leased if unwritable.get(entry.message.topic, now) <= now]
            leased = []
            if ready:
                outcome = await self._publish(context, producer, ready)
                if outcome.failed:
                    if context.stopping:
                        return True
                    if outcome.delivered:
                        retry_at = anyio.current_time() + self.runtime.settings.outbox_unwritable_seconds
                        failed_topics = (entry.message.topic for entry in outcome.failed)
                        unwritable.update(dict.fromkeys(failed_topics, retry_at))
                    else:
                        await anyio.sleep(_FRUITLESS_SECONDS)  # Kafka is unreachable
                if outcome.failed or outcome.refused:
                    # After a refusal the sequence numbers of aiokafka's idempotent producer can stay wrong.
                    return False
                if len(ready) < _LEASE_LIMIT and not context.stopping:
                    await anyio.sleep(max(0.0, now + _ROUND_SECONDS - anyio.current_time()))
                continue
            if context.stopping:
                return True
            await self._wait_for_more(context)

    async def _take_over(self, context: ActorContext[OutboxGrew]) -> list[LeasedMessage]:
        """Lease the entries of dead replicas. If Redis refuses this, as without XAUTOCLAIM, publishing continues."""
        take_over = partial(self.outbox.recover, self.runtime.settings.outbox_takeover_seconds, _LEASE_LIMIT)
        try:
            taken = await take_over()
        except StoreUnavailable as error:
            if error.answered:
                self.runtime.waits.begin(_ACTOR, _TAKE_OVER, str(error))
                return []
            taken = await self._persist(context, take_over)
        self.runtime.waits.end(_ACTOR, _TAKE_OVER)
        return taken

    async def _connect(self, context: ActorContext[OutboxGrew]) -> AIOKafkaProducer:
        return await retry(
            context,
            partial(self._start_producer, idempotent=self.runtime.settings.kafka_enable_idempotence),
            KafkaError,
            OSError,
            waits=self.runtime.waits,
            actor=_ACTOR,
            doing=CONNECT_PRODUCER,
            maximum_seconds=self.runtime.settings.retry_maximum_seconds,
        )

    async def _start_producer(self, *, idempotent: bool) -> AIOKafkaProducer:
        settings = self.runtime.settings
        producer = AIOKafkaProducer(
            **self.runtime.kafka.options(),
            client_id="batch-conductor-service",
            acks="all",
            enable_idempotence=idempotent,
            request_timeout_ms=int(settings.kafka_request_timeout_seconds * 1000),
            metadata_max_age_ms=int(settings.kafka_metadata_max_age_seconds * 1000),
            max_request_size=settings.kafka_max_message_bytes,
            max_batch_size=_BATCH_BYTES,
        )
        started = False
        try:
            timeout_seconds = settings.kafka_request_timeout_seconds
            await start(producer, settings.kafka_bootstrap_servers, timeout_seconds, idempotent=idempotent)
            started = True
        finally:
            if not started:
                await close(producer, _CLOSE_SECONDS)
        return producer

    async def _wait_for_more(self, context: ActorContext[OutboxGrew]) -> None:
        with anyio.move_on_after(self.runtime.settings.outbox_poll_interval_seconds):
            context.ack(await context.receive())

    async def _publish(
        self, context: ActorContext[OutboxGrew], producer: AIOKafkaProducer, leased: Sequence[LeasedMessage]
    ) -> _Outcome:
        """Publish messages, and write the result of each into the outbox.

        Failed messages go to the end of the queue: a topic that can't be written must not block other topics.
        """
        await hit(FailPoint.PUBLISHER_LEASED, context.name)
        with PublishSpans(self.runtime.tracer) as spans:
            outcome = await self._send(context, producer, leased, spans)
        await hit(FailPoint.PUBLISHER_ACKNOWLEDGED, context.name)
        await self._persist(context, self.outbox.ack, outcome.delivered)
        for entry, problem in outcome.parked:
            await self._persist(context, self.outbox.park, entry, problem)
            self.runtime.telemetry.parked.labels(entry.message.kind).inc()
            log.error(
                "message_parked",
                topic=entry.message.topic,
                problem=problem,
                correlation_id=entry.message.correlation_id,
                summed_by=("topic",),
            )
        await self._persist(context, self.outbox.requeue, outcome.failed)
        return outcome

    async def _send(
        self,
        context: ActorContext[OutboxGrew],
        producer: AIOKafkaProducer,
        leased: Sequence[LeasedMessage],
        spans: PublishSpans,
    ) -> _Outcome:
        outcome = _Outcome(spans)

        def on_result(entry: LeasedMessage, error: BaseException | None) -> None:
            if error is not None and may_be_about_one_record(error):
                outcome.refused.append(entry)
            else:
                self._count_result(outcome, entry, error)

        timeout_seconds = self.runtime.settings.kafka_request_timeout_seconds
        await publish_all(producer, leased, timeout_seconds, on_result, headers_of=spans.headers)
        if outcome.refused:
            context.heartbeat()
            await self._publish_each_alone(context, outcome)
        return outcome

    async def _publish_each_alone(self, context: ActorContext[OutboxGrew], outcome: _Outcome) -> None:
        """Find the messages for which the broker refused the record batches, and publish the others.

        A message that is too large is published truncated, if it can be truncated.
        """
        timeout_seconds = self.runtime.settings.kafka_request_timeout_seconds
        originals = {entry.place: entry for entry in outcome.refused}
        too_large: list[LeasedMessage] = []

        def on_result(entry: LeasedMessage, error: BaseException | None) -> None:
            context.heartbeat()  # many acknowledgements in turn can take longer than `hang_seconds`
            original = originals[entry.place]
            if isinstance(error, TOO_LARGE) and (truncated := as_truncated(entry.message)):
                too_large.append(replace(entry, message=truncated))
            elif isinstance(error, REFUSED_FOR_GOOD):
                outcome.parked.append((original, cause_of(error)))
                outcome.spans.end(original, error)
            else:
                self._count_result(outcome, original, error)

        try:
            producer = await self._start_producer(idempotent=False)
        except (KafkaError, OSError) as error:
            for entry in outcome.refused:
                self._count_result(outcome, entry, error)
            return
        try:
            for entries in (outcome.refused, too_large):
                await publish_all(
                    producer, entries, timeout_seconds, on_result, alone=True, headers_of=outcome.spans.headers
                )
        finally:
            await close(producer, _CLOSE_SECONDS)

    def _count_result(self, outcome: _Outcome, entry: LeasedMessage, error: BaseException | None) -> None:
        message = entry.message
        outcome.spans.end(entry, error)
        if error is None:
            outcome.delivered.append(entry)
            self.status.written(message.topic)
            self.runtime.waits.end(_ACTOR, _publish_to(message.topic))
            self.runtime.telemetry.published(message.kind).inc()
        else:
            outcome.failed.append(entry)
            self.runtime.telemetry.publish_failures.labels(message.kind).inc()
            self.status.write_failed(message.topic, error)
            self.runtime.waits.begin(_ACTOR, _publish_to(message.topic), self.status.unwritable[message.topic])

    async def _persist(
        self, context: ActorContext[OutboxGrew], change: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            # The first attempt without retries, because to set them up costs more than the round trip.
            return await change(*args, **kwargs)
        except StoreError:
            if context.stopping:
                raise
        return await retry(
            context,
            partial(change, *args, **kwargs),
            StoreError,
            waits=self.runtime.waits,
            actor=_ACTOR,
            doing=_USE_OUTBOX,
            maximum_seconds=self.runtime.settings.retry_maximum_seconds,
        )


def _publish_to(topic: str) -> str:
    return f"publish to {topic}"
