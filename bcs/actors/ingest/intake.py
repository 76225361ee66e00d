"""The intake: polls Kafka, decodes events, delivers facts to the batches, and commits offsets of durable messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import anyio
import structlog
from aiokafka.errors import KafkaError

from bcs.actors.dead_letters import DeadLetters
from bcs.actors.ingest.commits import OffsetCommits
from bcs.actors.ingest.delivery import Delivery
from bcs.actors.ingest.in_flight import InFlight
from bcs.actors.ingest.offsets import OffsetTracker
from bcs.actors.ingest.reading import EventReader
from bcs.actors.ingest.refused import RefusedMessages
from bcs.actors.ingest.session import PollSession
from bcs.actors.ingest.skip_handler import SkipHandler
from bcs.actors.messages import MessagesAcked
from bcs.actors.runtime import Runtime
from bcs.kafka.causes import cause_of, is_refusal, start
from bcs.kafka.isolation import IsolatingConsumer
from bcs.kafka.status import KafkaStatus, close
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.waits import INTAKE, READ_KAFKA
from bcs.supervision import ActorContext

log = structlog.stdlib.get_logger("bcs.intake")

_CLOSE_SECONDS = 1.0
# Long enough to finish the messages in flight of a revoked partition, and to commit their offsets.
_REBALANCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """The Kafka intake. One instance serves all incarnations of the actor. Its mailbox gets the finished messages."""

    runtime: Runtime
    reader: EventReader
    in_flight: InFlight
    dead_letters: DeadLetters
    status: KafkaStatus
    _epochs: Iterator[int] = field(default_factory=lambda: count(1), init=False)

    async def run(self, context: ActorContext[MessagesAcked]) -> None:
        """Consume until a stop is requested. While Kafka is unreachable this retries, and does not crash."""
        await hit(FailPoint.STARTING, context.name)
        # Ready without Kafka: the rest of the service does not depend on it.
        context.ready()
        while not context.stopping:
            consumer = self._consumer()
            try:
                if await self._connect(context, consumer):
                    await self.session(context, consumer).run()
            except* (KafkaError, OSError) as group:
                # The status of Kafka has logged an outage already.
                self.runtime.waits.begin(INTAKE, READ_KAFKA, cause_of(group), log_cause=is_refusal(group))
                context.heartbeat()
            finally:
                context.mark_idle()  # `close` has its own time limit
                await close(consumer, _CLOSE_SECONDS)
            with anyio.move_on_after(self.runtime.settings.intake_retry_seconds):
                await context.wait_stopping()

    def session(self, context: ActorContext[MessagesAcked], consumer: IsolatingConsumer) -> PollSession:
        """Create a session for a connected consumer."""
        settings = self.runtime.settings
        tracker = OffsetTracker(self._epochs)
        refused = RefusedMessages(dead_letters=self.dead_letters, waits=self.runtime.waits)
        skip_handler = SkipHandler(
            skip_orders=self.reader.skip_orders,
            consumer=consumer,
            tracker=tracker,
            in_flight=self.in_flight,
            refused=refused,
        )
        return PollSession(
            runtime=self.runtime,
            context=context,
            consumer=consumer,
            delivery=Delivery(
                runtime=self.runtime,
                consumer=consumer,
                reader=self.reader,
                in_flight=self.in_flight,
                skip_handler=skip_handler,
                status=self.status,
            ),
            skip_handler=skip_handler,
            commits=OffsetCommits(
                consumer=consumer,
                tracker=tracker,
                context=context,
                timeout_seconds=settings.kafka_request_timeout_seconds,
            ),
            status=self.status,
        )

    async def _connect(self, context: ActorContext[MessagesAcked], consumer: IsolatingConsumer) -> bool:
        """Connect to the brokers; False if a stop was requested first."""
        context.heartbeat()
        connected = False
        async with anyio.create_task_group() as group:

            async def cancel_on_stop() -> None:
                await context.wait_stopping()
                group.cancel_scope.cancel()

            group.start_soon(cancel_on_stop)
            settings = self.runtime.settings
            await start(consumer, settings.kafka_bootstrap_servers, settings.kafka_request_timeout_seconds)
            connected = True
            group.cancel_scope.cancel()
        return connected

    def _consumer(self) -> IsolatingConsumer:
        settings = self.runtime.settings
        rebalance_ms = int(max(settings.kafka_session_timeout_seconds, _REBALANCE_SECONDS) * 1000)
        # The session subscribes, and so joins the group, because it listens to rebalances.
        return IsolatingConsumer(
            partition_retry_maximum_seconds=settings.kafka_partition_retry_maximum_seconds,
            **self.runtime.kafka.options(),
            group_id=settings.kafka_consumer_group_id,
            client_id="batch-conductor-service",
            auto_offset_reset=settings.kafka_auto_offset_reset,
            enable_auto_commit=False,
            isolation_level="read_committed",
            session_timeout_ms=int(settings.kafka_session_timeout_seconds * 1000),
            heartbeat_interval_ms=int(settings.kafka_heartbeat_interval_seconds * 1000),
            # Joining waits for every living member, and for a dead member until its session expires. aiokafka has no
            # separate timeout for the join. With a shorter request timeout it would join again and again.
            rebalance_timeout_ms=rebalance_ms,
            request_timeout_ms=rebalance_ms + 5_000,
            metadata_max_age_ms=int(settings.kafka_metadata_max_age_seconds * 1000),
            max_poll_records=settings.kafka_max_poll_records,
            fetch_max_wait_ms=100,
        )
