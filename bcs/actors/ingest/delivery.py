"""Delivers polled messages to their batches, and counts which of them are finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
from aiokafka import ConsumerRecord, TopicPartition

from bcs.actors.ingest.in_flight import InFlight
from bcs.actors.ingest.offsets import OffsetTracker
from bcs.actors.ingest.passing_over import PassingOver
from bcs.actors.ingest.reading import EventReader, ahead_of_time
from bcs.actors.ingest.turns import Turns
from bcs.actors.messages import ApplyFacts, DeliveryToken, message_of, position_of
from bcs.actors.runtime import Runtime
from bcs.domain.skips import SkipOutcome
from bcs.errors import ClocksDiffer, StoreUnavailable, UndecodableMessage
from bcs.kafka.isolation import IsolatingConsumer
from bcs.kafka.status import KafkaStatus
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.waits import INTAKE

# What the intake may wait to do.
_COMPARE_CLOCKS = "tell whether an event is ahead of time"

# Delivery yields to other tasks after so many messages or bytes, or it would delay HTTP: to decode a megabyte takes up
# to 50 ms.
_MESSAGES_PER_TURN = 100
_BYTES_PER_TURN = 128 * 1024
_REMEMBERED_FACTOR = 20
# The clocks are compared again this long after they were found to differ.
_CLOCKS_SECONDS = 1.0


class Progress:
    """Wakes the tasks that wait until more messages are finished."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def note(self) -> None:
        """Wake all waiting tasks."""
        self._event.set()
        self._event = anyio.Event()

    async def wait(self) -> None:
        """Wait for the next call of `note`."""
        await self._event.wait()


class Delivery:
    """Delivers the messages of one session.

    :param consumer: the consumer of the session.
    :param in_flight: of all sessions.
    :param passing_over: carries out the orders of operators; it has the tracker of the session.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        consumer: IsolatingConsumer,
        reader: EventReader,
        in_flight: InFlight,
        passing_over: PassingOver,
        status: KafkaStatus,
    ) -> None:
        self.progress = Progress()
        self._runtime = runtime
        self._consumer = consumer
        self._reader = reader
        self._in_flight = in_flight
        self._tracker: OffsetTracker = passing_over.tracker
        self._refused = passing_over.refused
        self._passing_over = passing_over
        self._status = status
        self._turns = Turns(messages=_MESSAGES_PER_TURN, size_bytes=_BYTES_PER_TURN)
        self._read_again_at = 0.0

    @property
    def must_pause(self) -> bool:
        """True while no more messages should be read."""
        return (
            len(self._refused) > 0
            or anyio.current_time() < self._read_again_at
            or self._in_flight.is_full
            # Finished messages behind an unfinished one must be remembered, too.
            or self._tracker.remembered >= self._runtime.settings.intake_max_in_flight * _REMEMBERED_FACTOR
        )

    def note_clocks(self) -> None:
        """End the wait for the clocks, once the messages that waited for them were read again."""
        if anyio.current_time() > self._read_again_at + _CLOCKS_SECONDS:
            # They were delivered, or another replica has their partition now.
            self._status.go_on()
            self._runtime.waits.end(INTAKE, _COMPARE_CLOCKS)

    async def deliver(self, polled: dict[TopicPartition, list[ConsumerRecord]]) -> None:
        """Deliver all messages of a poll. Messages that have to wait are read again later.

        Cancellation leaves messages undelivered and unfinished; they are read again.
        """
        # Taken before any other task can run: a rebalance may begin new epochs during the delivery.
        epochs = {key: self._tracker.epoch(*key) for key in polled}
        if polled:
            await hit(FailPoint.INTAKE_RECEIVED, INTAKE)
        read_again = False
        for key, messages in polled.items():
            read_again |= not await self.take(key, messages, epochs[key])
        if not read_again:
            self._note_passed()

    async def take(self, key: TopicPartition, messages: Sequence[ConsumerRecord], epoch: int | None) -> bool:
        """Deliver the messages of one partition.

        :param epoch: the ownership of the partition in which they were read.
        :returns: False if some of them are read again.
        """
        for record in messages:
            if epoch is None or self._tracker.epoch(*key) != epoch:
                if epoch is None and key in self._consumer.assignment():
                    # Read before the listener learnt of the assignment: without the seek they would be lost.
                    self._consumer.seek(key, record.offset)
                return False
            if not await self._deliver(record, epoch):
                # After a rebalance no message of the new ownership may be passed over.
                if self._is_owned(record, epoch):
                    self._consumer.seek(key, record.offset)
                return False
            if self._turns.is_over_after(len(record.value or b"")):
                await anyio.lowlevel.checkpoint()
        return True

    def acked(self, token: DeliveryToken) -> None:
        """Count a message as finished that a batch's actor has acknowledged."""
        self._in_flight.remove(token)
        self._finish(token)

    async def store_refused(self) -> None:
        """Store the dead letters of refused messages. Only when they are durable do the messages count as finished."""
        while tokens := await self._refused.store():
            for token in tokens:
                await self._passing_over.note(position_of(token.message), SkipOutcome.SKIPPED)
                self._finish(token)
            self.progress.note()

    async def _deliver(self, record: ConsumerRecord, epoch: int) -> bool:
        """Deliver the facts of one message to its batch; False if the message has to be read again later."""
        message = message_of(record)
        event_type = self._reader.decoder.event_type(record.topic)
        try:
            event = self._reader.read(record, message)
            if self._reader.seems_ahead(event):
                ahead = await self._reader.clocks.is_ahead(event.at_us)
                # After a rebalance the next owner decides.
                if not self._is_owned(record, epoch):
                    return False
                if ahead:
                    raise ahead_of_time(event)
        except UndecodableMessage as error:
            self._tracker.read(record.topic, record.partition, record.offset)
            self._refused.add(DeliveryToken(message, event_type, error.correlation_id, epoch), error)
            return True
        except (ClocksDiffer, StoreUnavailable) as error:
            self._read_again_at = anyio.current_time() + _CLOCKS_SECONDS
            self._status.wait_for(str(error))
            # The status writes the log line.
            self._runtime.waits.begin(INTAKE, _COMPARE_CLOCKS, str(error), aloud=False)
            return False
        self._tracker.read(record.topic, record.partition, record.offset)
        token = DeliveryToken(message, event_type, event.correlation_id, epoch, event.event_id)
        if event.facts:
            await self._in_flight.deliver(ApplyFacts(event.batch_id, event.facts, token), token)
        else:
            self._runtime.telemetry.events(event_type, "ignored").inc()
            self._finish(token)
            self.progress.note()
        return True

    def _is_owned(self, record: ConsumerRecord, epoch: int) -> bool:
        """True while the partition is owned as it was when the record was read."""
        return self._tracker.epoch(record.topic, record.partition) == epoch

    def _finish(self, token: DeliveryToken) -> None:
        message = token.message
        written_ms = message.timestamp_ms if message.timestamp_ms >= 0 else None
        self._tracker.finish(message.topic, message.partition, message.offset, token.epoch, written_ms)

    def _note_passed(self) -> None:
        # Called after all messages of a poll were taken. aiokafka's own position() waits if there is no position.
        assignment: Any = self._consumer._subscription.subscription
        for key in self._consumer.assignment():
            state = assignment.assignment.state_value(key)
            if state is not None and state.has_valid_position:
                self._tracker.passed(key.topic, key.partition, state.position)
