"""Carries out skip orders for messages of the partitions that this replica owns."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from aiokafka import TopicPartition

from bcs.actors.ingest.in_flight import InFlight
from bcs.actors.ingest.offsets import OffsetTracker
from bcs.actors.ingest.refused import RefusedMessages
from bcs.actors.ingest.skip_orders import SkipOrders
from bcs.domain.history import Position
from bcs.domain.skips import SkipOutcome, WaitingSkip
from bcs.errors import StoreError
from bcs.kafka.isolation import IsolatingConsumer

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipHandler:
    """Skips messages that no poll returns: they can't be read, or are in flight and never finished by their batch.

    :param in_flight: the messages that the batches have not finished.
    """

    skip_orders: SkipOrders
    consumer: IsolatingConsumer
    tracker: OffsetTracker
    in_flight: InFlight
    refused: RefusedMessages

    async def carry_out(self) -> bool:
        """Carry out the orders for this replica's partitions. After a failure the next call tries again.

        :returns: True if a message became finished.
        """
        any_finished, refused = False, self.refused.positions
        for waiting in self.skip_orders:
            at, tracker = waiting.order.position, self.tracker
            epoch = tracker.epoch(at.topic, at.partition)
            if epoch is None or at in refused:
                continue  # another replica owns the partition, or the message already waits for its dead letter
            key = TopicPartition(at.topic, at.partition)
            stall, first_unfinished = self.consumer.stalled.get(key), tracker.position(at.topic, at.partition)
            unreadable = stall is not None and stall.offset == at.offset
            if unreadable or tracker.is_unfinished(at.topic, at.partition, at.offset):
                # None if no batch has the message, for example because it can't be read.
                command = self.in_flight.command_at(at, epoch)
                stored = await self.refused.store_skipped(waiting.order, command)
                if not stored or tracker.epoch(at.topic, at.partition) != epoch:
                    return any_finished
                if unreadable:
                    tracker.read(at.topic, at.partition, at.offset)
                    self.consumer.skip(key, at.offset)
                await self.note_skipped(at, SkipOutcome.SKIPPED if command else SkipOutcome.SKIPPED_UNREAD)
                tracker.finish(at.topic, at.partition, at.offset, epoch)
                any_finished = True
            elif waiting.outcome is not None:
                # If this process dies before the commit, the message is read again. Then the order must still exist.
                if tracker.is_committed(at.topic, at.partition, at.offset):
                    await self._close(waiting, waiting.outcome)
            elif first_unfinished is not None and at.offset < first_unfinished:
                await self._close(waiting, SkipOutcome.ALREADY_PROCESSED)
        return any_finished

    async def note_skipped(self, position: Position, outcome: SkipOutcome) -> None:
        """Save that a message was skipped, if an order exists for it."""
        try:
            await self.skip_orders.save_outcome(position, outcome)
        except StoreError as error:
            # The outcome is in this process's memory, too, so this process can close the order.
            log.debug("skip_outcome_not_saved", error=str(error))

    async def _close(self, waiting: WaitingSkip, outcome: SkipOutcome) -> None:
        try:
            await self.skip_orders.close(waiting, outcome)
        except StoreError as error:
            # The order still waits; the next call closes it.
            log.debug("skip_order_not_closed", error=str(error))
