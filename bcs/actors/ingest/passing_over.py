"""Carries out the orders of operators to pass over messages of the partitions that this replica has."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from aiokafka import TopicPartition

from bcs.actors.ingest.in_flight import InFlight
from bcs.actors.ingest.offsets import OffsetTracker
from bcs.actors.ingest.refused import RefusedMessages
from bcs.actors.ingest.skips import Skips
from bcs.domain.history import Position
from bcs.domain.skips import SkipOutcome, WaitingSkip
from bcs.errors import StoreError
from bcs.kafka.isolation import IsolatingConsumer

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassingOver:
    """Passes over messages that no poll hands out: they can't be read, or a batch is never done with them.

    :param skips: the orders.
    :param in_flight: what batches hold.
    """

    skips: Skips
    consumer: IsolatingConsumer
    tracker: OffsetTracker
    in_flight: InFlight
    refused: RefusedMessages

    async def carry_out(self) -> bool:
        """Carry out what can be. What fails is tried again with the next call, by whoever has the partition then.

        :returns: True where a message counts as finished for that.
        """
        any_finished, refused = False, self.refused.positions
        for waiting in self.skips:
            at, tracker = waiting.order.position, self.tracker
            epoch = tracker.epoch(at.topic, at.partition)
            if epoch is None or at in refused:
                continue  # another replica has the partition, or a dead letter with its bytes waits for the store
            key = TopicPartition(at.topic, at.partition)
            stall, first_unfinished = self.consumer.stalled.get(key), tracker.position(at.topic, at.partition)
            unreadable = stall is not None and stall.offset == at.offset
            if unreadable or tracker.is_unfinished(at.topic, at.partition, at.offset):
                # A batch may hold it, which does not get done with it.
                held = self.in_flight.command_at(at, epoch)
                stored = await self.refused.store_skipped(waiting.order, held)
                if not stored or tracker.epoch(at.topic, at.partition) != epoch:
                    return any_finished
                if unreadable:
                    tracker.read(at.topic, at.partition, at.offset)
                    self.consumer.pass_over(key, at.offset)
                await self.note(at, SkipOutcome.SKIPPED if held else SkipOutcome.SKIPPED_UNREAD)
                tracker.finish(at.topic, at.partition, at.offset, epoch)
                any_finished = True
            elif waiting.outcome is not None:
                # Until the commit, the message of a process that dies is read again: then the order must still stand.
                if tracker.is_committed(at.topic, at.partition, at.offset):
                    await self._close(waiting, waiting.outcome)
            elif first_unfinished is not None and at.offset < first_unfinished:
                await self._close(waiting, SkipOutcome.ALREADY_PROCESSED)
        return any_finished

    async def note(self, position: Position, outcome: SkipOutcome) -> None:
        """Note that a message was passed over, if that was ordered."""
        try:
            await self.skips.carried_out(position, outcome)
        except StoreError as error:
            # This process knows it all the same, and closes the order.
            log.debug("skip_outcome_not_saved", error=str(error))

    async def _close(self, waiting: WaitingSkip, outcome: SkipOutcome) -> None:
        try:
            await self.skips.close(waiting, outcome)
        except StoreError as error:
            # It waits on, and is found to be done.
            log.debug("skip_order_not_closed", error=str(error))
