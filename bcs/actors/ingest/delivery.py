"""Delivers polled messages to their batches, and counts which of them are finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
from aiokafka import ConsumerRecord, TopicPartition

from bcs.actors.ingest.in_flight import InFlight
from bcs.actors.ingest.offsets import OffsetTracker
from bcs.actors.ingest.reading import EventReader, ahead_of_time
from bcs.actors.ingest.skip_handler import SkipHandler
from bcs.actors.ingest.turns import Turns
from bcs.actors.messages import ApplyFacts, DeliveryToken, message_of, position_of
from bcs.actors.runtime import Runtime
from bcs.domain.skips import SkipOutcome
from bcs.errors import ClocksDiffer, StoreUnavailable, UndecodableMessage
from bcs.kafka.isolation import IsolatingConsumer
from bcs.kafka.status import KafkaStatus
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.waits import INTAKE

# The action that the intake may have to retry.
_COMPARE_CLOCKS = "find out whether an event is in the future"

# Delivery yields to other tasks after so many messages or bytes. Otherwise HTTP would be delayed: decoding a megabyte
# takes up to 50 ms.
_MESSAGES_PER_TURN = 50
_BYTES_PER_TURN = 128 * 1024
_REMEMBERED_FACTOR = 20
# The time between a failed comparison of the clocks and the next one.
_CLOCKS_SECONDS = 1.0


class Progress:
    """Wakes the tasks that wait until more messages are finished."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def notify(self) -> None:
        """Wake all waiting tasks."""
        self._event.set()
        self._event = anyio.Event()

    async def wait(self) -> None:
        """Wait for the next call of `notify`."""
        await self._event.wait()


class Delivery:
    """Delivers the messages of one session.

    :param consumer: the consumer of the session.
    :param in_flight: the messages in flight of all sessions.
    :param skip_handler: carries out skip orders; its tracker is also the tracker of this session.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        consumer: IsolatingConsumer,
        reader: EventReader,
        in_flight: InFlight,
        skip_handler: SkipHandler,
        status: KafkaStatus,
    ) -> None:
        self.progress = Progress()
        self._runtime = runtime
        self._consumer = consumer
        self._reader = reader
        self._in_flight = in_flight
        self._tracker: OffsetTracker = skip_handler.tracker
        self._refused = skip_handler.refused
        self._skip_handler = skip_handler
        self._status = status
        self._turns = Turns(messages=_MESSAGES_PER_TURN, size_bytes=_BYTES_PER_TURN)
        self._reread_at = 0.0
        self._not_ahead_us = 0  # read once a turn: an event up to this time is not in the future

    @property
    def must_pause(self) -> bool:
        """True while no more messages should be read."""
        return (
            len(self._refused) > 0
            or anyio.current_time() < self._reread_at
            or self._in_flight.is_full
            # The tracker also stores finished messages behind an unfinished one.
            or self._tracker.remembered >= self._runtime.settings.intake_max_in_flight * _REMEMBERED_FACTOR
        )

    def end_clock_wait(self) -> None:
        """End the wait for the clocks, once no comparison has failed for a second."""
        if anyio.current_time() > self._reread_at + _CLOCKS_SECONDS:
            # The messages were delivered, or another replica now owns their partition.
            self._status.end_wait()
            self._runtime.waits.end(INTAKE, _COMPARE_CLOCKS)

    async def deliver_poll(self, polled: dict[TopicPartition, list[ConsumerRecord]]) -> None:
        """Deliver all messages of a poll. Messages that have to wait are read again later.

        Cancellation leaves messages undelivered and unfinished; they are read again.
        """
        # Read before any other task can run: a rebalance may begin new epochs during the delivery.
        epochs = {key: self._tracker.epoch(*key) for key in polled}
        if polled:
            await hit(FailPoint.INTAKE_RECEIVED, INTAKE)
        reread = False
        for key, messages in polled.items():
            reread |= not await self.deliver_partition(key, messages, epochs[key])
        if not reread:
            self._advance_positions()

    async def deliver_partition(
        self, key: TopicPartition, messages: Sequence[ConsumerRecord], epoch: int | None
    ) -> bool:
        """Deliver the messages of one partition.

        :param epoch: the epoch of the ownership in which the messages were read; None without an ownership.
        :returns: False if some of the messages have to be read again.
        """
        self._not_ahead_us = self._reader.clocks.latest_us()
        for record in messages:
            if epoch is None or self._tracker.epoch(*key) != epoch:
                if epoch is None and key in self._consumer.assignment():
                    # The poll returned before the listener was notified of the assignment. Without the seek these
                    # messages would be lost.
                    self._consumer.seek(key, record.offset)
                return False
            if not await self._deliver_message(record, epoch):
                # After a rebalance the position belongs to the new ownership: a seek could skip messages.
                if self._is_owned(record, epoch):
                    self._consumer.seek(key, record.offset)
                return False
            if self._turns.is_over_after(len(record.value or b"")):
                await anyio.lowlevel.checkpoint()
                self._not_ahead_us = self._reader.clocks.latest_us()
        return True

    def acked(self, token: DeliveryToken) -> None:
        """Count a message as finished after the batch's actor has acknowledged it."""
        self._in_flight.remove(token)
        self._finish(token)

    async def store_refused(self) -> None:
        """Store the dead letters of refused messages. The messages count as finished after that."""
        while tokens := await self._refused.store():
            for token in tokens:
                await self._skip_handler.note_skipped(position_of(token.message), SkipOutcome.SKIPPED)
                self._finish(token)
            self.progress.notify()

    async def _deliver_message(self, record: ConsumerRecord, epoch: int) -> bool:
        """Deliver the facts of one message to its batch; False if the message has to be read again later."""
        message = message_of(record)
        try:
            event = self._reader.read(record, message)
            if event.at_us > self._not_ahead_us and self._reader.seems_ahead(event):
                ahead = await self._reader.clocks.is_ahead(event.at_us, event.batch_id)
                # After a rebalance the new owner decides.
                if not self._is_owned(record, epoch):
                    return False
                if ahead:
                    raise ahead_of_time(event)
        except UndecodableMessage as error:
            self._tracker.read(record.topic, record.partition, record.offset)
            self._refused.dead_letters.note_replay(message, error.batch_id, error.correlation_id)
            event_type = self._reader.decoder.event_type(record.topic)
            self._refused.add(DeliveryToken(message, event_type, error.correlation_id, epoch), error)
            return True
        except (ClocksDiffer, StoreUnavailable) as error:
            self._reread_at = anyio.current_time() + _CLOCKS_SECONDS
            self._status.begin_wait(str(error))
            # The status writes the log line.
            self._runtime.waits.begin(INTAKE, _COMPARE_CLOCKS, str(error), log_cause=False)
            return False
        self._tracker.read(record.topic, record.partition, record.offset)
        self._refused.dead_letters.note_replay(message, event.batch_id, event.correlation_id)
        token = DeliveryToken(message, event.event_type, event.correlation_id, epoch, event.event_id)
        if event.facts:
            await self._in_flight.deliver(ApplyFacts(event.batch_id, event.facts, token), token)
        else:
            self._runtime.telemetry.events(event.event_type, "ignored").inc()
            self._finish(token)
            self.progress.notify()
        return True

    def _is_owned(self, record: ConsumerRecord, epoch: int) -> bool:
        """True while the ownership in which the record was read lasts."""
        return self._tracker.epoch(record.topic, record.partition) == epoch

    def _finish(self, token: DeliveryToken) -> None:
        message = token.message
        written_ms = message.timestamp_ms if message.timestamp_ms >= 0 else None
        self._tracker.finish(message.topic, message.partition, message.offset, token.epoch, written_ms)

    def _advance_positions(self) -> None:
        # Called after all messages of a poll were delivered. aiokafka's own position() waits if there is no position.
        assignment: Any = self._consumer._subscription.subscription
        for key in self._consumer.assignment():
            state = assignment.assignment.state_value(key)
            if state is not None and state.has_valid_position:
                self._tracker.advance(key.topic, key.partition, state.position)
