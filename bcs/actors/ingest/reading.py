"""Reads events from Kafka records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog
from aiokafka import ConsumerRecord

from bcs.actors.clocks import Clocks
from bcs.actors.ingest.skip_orders import SkipOrders
from bcs.actors.messages import decoded, written_at_ms
from bcs.domain.times import format_timestamp
from bcs.errors import UndecodableMessage
from bcs.wire.decoding import DecodedEvent, EventDecoder
from bcs.wire.published import ConsumedMessage

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventReader:
    """Decodes events, and refuses the events that operators ordered to skip.

    :param clocks: decide whether an event's time is in the future.
    :param now: wall-clock time.
    """

    decoder: EventDecoder
    clocks: Clocks
    skip_orders: SkipOrders
    now: Callable[[], datetime]

    def read(self, record: ConsumerRecord, message: ConsumedMessage) -> DecodedEvent:
        """The event in a record.

        :param message: the content of the record.
        :raises UndecodableMessage: the message must become a dead letter.
        """
        event = decoded(self.decoder, message, self._event_time_ms(record))
        self.skip_orders.refuse_ordered(message, event.batch_id, event.correlation_id)
        unknown = self.decoder.unknown_phase(event)
        if unknown is not None:
            # Not summed up by the phase, because there may be very many names.
            log.warning("unknown_phase_kept", phase=unknown, batch_id=event.batch_id, summed_by=())
        return event

    def seems_ahead(self, event: DecodedEvent) -> bool:
        """True if an event's time is in the future by this process's clock, which may be wrong."""
        return bool(event.facts) and self.clocks.seems_ahead(event.at_us)

    def _event_time_ms(self, record: ConsumerRecord) -> int:
        event_time_ms = written_at_ms(record)
        return int(self.now().timestamp() * 1000) if event_time_ms is None else event_time_ms


def ahead_of_time(event: DecodedEvent) -> UndecodableMessage:
    """The error for an event whose time is in the future."""
    problem = f"the event's time, {format_timestamp(event.at_us)}, is in the future"
    return UndecodableMessage("time_in_the_future", problem, event.batch_id, event.correlation_id)
