"""One membership in the consumer group, from subscribing to leaving."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import anyio
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener

from bcs.actors.ingest.commits import OffsetCommits
from bcs.actors.ingest.delivery import Delivery
from bcs.actors.ingest.skip_handler import SkipHandler
from bcs.actors.messages import MessagesAcked
from bcs.actors.portions import Amount
from bcs.actors.runtime import Runtime
from bcs.kafka.isolation import IsolatingConsumer
from bcs.kafka.status import KafkaStatus
from bcs.observability.waits import INTAKE, READ_KAFKA
from bcs.supervision import ActorContext
from bcs.wire import topics

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")

_POLL_SECONDS = 0.2
# aiokafka's getmany() ignores its own timeout while the group rebalances. That can last as long as an outage of Kafka.
_POLL_LIMIT_SECONDS = 1.0
# After a poll with more bytes the next polls request fewer messages. One poll may exceed the in-flight limits by this
# much.
_BYTES_PER_POLL = 8 * 1024 * 1024
# A group commit acknowledges many messages at once.
_ACKNOWLEDGEMENTS_PER_TURN = 100
_REVOKE_SECONDS = 5.0


class PollSession(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """Polls, delivers, and commits the offsets of what has become durable.

    It has three tasks: one polls, one collects acknowledgements, and one commits. A rebalance holds up the polls, and
    its listener waits until the second task has collected what is unfinished.

    :param consumer: connected, and not yet in the group.
    :param delivery: belongs to this session only.
    :param skip_handler: belongs to this session only; has its tracker.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        context: ActorContext[MessagesAcked],
        consumer: IsolatingConsumer,
        delivery: Delivery,
        skip_handler: SkipHandler,
        commits: OffsetCommits,
        status: KafkaStatus,
    ) -> None:
        self.delivery = delivery
        self.tracker = skip_handler.tracker
        self._runtime = runtime
        self._context = context
        self._consumer = consumer
        self._skip_handler = skip_handler
        self._commits = commits
        self._status = status
        self._per_poll = Amount(runtime.settings.kafka_max_poll_records)
        self._ended = False

    async def run(self) -> None:
        """Consume until a stop is requested; then finish the messages that were read, and commit their offsets.

        Cancellation leaves messages unfinished and uncommitted; they are read again.

        :raises ExceptionGroup: the errors that ended the session.
        """
        skip_orders = self._skip_handler.skip_orders
        # An order can exist for the first message.
        await skip_orders.refresh()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._collect)
                group.start_soon(self._commit_at_intervals)
                group.start_soon(skip_orders.follow)
                self._consumer.subscribe(topics.CONSUMED, listener=self)
                while not self._context.stopping:
                    await self._poll()
                await self._drain()
                await self._commits.commit()
                group.cancel_scope.cancel()
        finally:
            # Otherwise the messages that finished since the last commit would be read again.
            await self._commits.commit_at_end()
            self._ended = True
            self._status.assigned = frozenset()
            self.delivery.progress.notify()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finish the messages of these partitions within a time limit; the next owner reads the rest again."""
        partitions = [(topic, partition) for topic, partition in revoked]
        with anyio.move_on_after(_REVOKE_SECONDS):
            # After the end of the session no task marks messages as finished: a wait would only delay the stop.
            while self.tracker.unfinished(partitions) and not self._ended:
                await self.delivery.progress.wait()
        if not self._ended:
            await self._commits.commit()
        self.tracker.revoke(partitions)
        self._status.assigned -= frozenset(partitions)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin a new ownership of these partitions."""
        partitions = [(topic, partition) for topic, partition in assigned]
        self.tracker.assign(partitions)
        self._status.assigned |= frozenset(partitions)
        self._commits.reset_notes(partitions)

    async def _drain(self) -> None:
        """Wait until the messages in flight are durable; without progress for some time, the next owner reads them."""
        drain_seconds = self._runtime.settings.intake_drain_timeout_seconds
        drain_ends = anyio.current_time() + drain_seconds
        while (before := self.tracker.in_flight) and anyio.current_time() < drain_ends:
            await self._wait_for_progress()
            if self.tracker.in_flight < before:
                drain_ends = anyio.current_time() + drain_seconds

    async def _poll(self) -> None:
        self._heartbeat()
        wait_ms = int(_POLL_SECONDS * 1000)
        assigned = self._consumer.assignment()
        if self.delivery.must_pause:
            # Pause the partitions but continue to poll: the group removes a consumer that stops polling.
            self._consumer.pause(*(assigned - self._consumer.paused()))
            await self._wait_for_progress()
            wait_ms = 0
        else:
            self._consumer.resume(*(assigned & self._consumer.paused()))
            self.delivery.end_clock_wait()
        polled: dict[TopicPartition, list[ConsumerRecord]] = {}
        with anyio.move_on_after(_POLL_LIMIT_SECONDS):
            polled = await self._consumer.getmany(timeout_ms=wait_ms, max_records=self._per_poll.now)
        self._note_connection()
        self._note_missed()
        self._adjust_poll_size(polled.values())
        await self.delivery.deliver_poll(polled)
        self._status.set_stalled(self._consumer.stalled)
        await self.delivery.store_refused()
        if await self._skip_handler.carry_out():
            self.delivery.progress.notify()

    def _note_connection(self) -> None:
        """Note whether the intake waits for Kafka. Polls of a frozen broker return nothing, and raise no error."""
        status, waits = self._status, self._runtime.waits
        if status.connected is False:
            waits.begin(INTAKE, READ_KAFKA, status.problem, log_cause=False)
        elif self._commits.is_member:
            waits.end(INTAKE, READ_KAFKA)

    def _note_missed(self) -> None:
        """Log and count the messages that Kafka removed before they were read."""
        for missed in self._consumer.take_missed():
            key = TopicPartition(missed.topic, missed.partition)
            count = missed.to_offset - missed.from_offset
            log.warning(
                "events_missed",
                topic=missed.topic,
                partition=missed.partition,
                from_offset=missed.from_offset,
                to_offset=missed.to_offset,
                count=count,
            )
            self._runtime.telemetry.events_missed.labels(missed.topic).inc(count)
            self._commits.note_missed(key, count, int(self._runtime.now().timestamp() * 1000))

    def _adjust_poll_size(self, polled: Iterable[Sequence[ConsumerRecord]]) -> None:
        sizes = [len(record.value or b"") for records in polled for record in records]
        if sum(sizes) > _BYTES_PER_POLL:
            self._per_poll.was_too_much(len(sizes))
        else:
            self._per_poll.was_taken()

    async def _wait_for_progress(self) -> None:
        with anyio.move_on_after(_POLL_SECONDS):
            await self.delivery.progress.wait()
        self._heartbeat()
        await self.delivery.store_refused()

    async def _collect(self) -> None:
        """Receive acknowledgements."""
        mailbox = self._context.mailbox
        while True:
            envelopes = await mailbox.receive(_ACKNOWLEDGEMENTS_PER_TURN)
            for envelope in envelopes:
                for token in envelope.message.tokens:
                    self.delivery.acked(token)
            self.delivery.progress.notify()
            mailbox.ack(envelopes)

    async def _commit_at_intervals(self) -> None:
        while True:
            await anyio.sleep(self._runtime.settings.intake_commit_interval_seconds)
            await self._commits.commit()

    def _heartbeat(self) -> None:
        # While another task is stuck in a commit, polls must not count as progress. The end of a commit sends its own
        # heartbeat.
        if not self._commits.in_progress:
            self._context.heartbeat()
