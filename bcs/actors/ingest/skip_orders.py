"""The waiting skip orders of operators, in the memory of this replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Protocol

import anyio
import structlog

from bcs.actors.messages import position_of
from bcs.domain.history import Position
from bcs.domain.skips import SkipEvent, SkipOrder, SkipOutcome, WaitingSkip
from bcs.errors import StoreError, UndecodableMessage
from bcs.wire.published import ConsumedMessage, rfc3339

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")

REASON: Final = "skipped_by_operator"
_REFRESH_SECONDS = 1.0


class SkipStore(Protocol):
    """Stores skip orders."""

    async def waiting(self) -> list[WaitingSkip]:
        """The waiting orders."""
        ...

    async def save_outcome(self, order: SkipOrder, outcome: SkipOutcome) -> None:
        """Store the outcome of an order, which is closed later."""
        ...

    async def close(self, event: SkipEvent) -> None:
        """Store how an order ended, and remove it from the waiting orders."""
        ...


@dataclass(slots=True, kw_only=True)
class SkipOrders:
    """The waiting orders. Every replica reads all orders, and carries out those for its partitions.

    :param store: None if the store of this deployment has no skip orders.
    :param instance: this replica's name.
    :param now: wall-clock time.
    """

    store: SkipStore | None
    instance: str
    now: Callable[[], datetime]
    _waiting: dict[Position, WaitingSkip] = field(default_factory=dict)

    async def refresh(self) -> None:
        """Read the waiting orders once. If the store fails, the known orders stay."""
        if self.store is None:
            return
        try:
            found = await self.store.waiting()
        except StoreError as error:
            log.debug("skip_orders_not_read", error=str(error))
        else:
            self._waiting = {waiting.order.position: self._with_known_outcome(waiting) for waiting in found}

    def _with_known_outcome(self, waiting: WaitingSkip) -> WaitingSkip:
        """The order with the outcome in this process's memory, because the store may lack the outcome."""
        known = self._waiting.get(waiting.order.position)
        if known is None or known.order != waiting.order:
            return waiting
        return replace(waiting, outcome=waiting.outcome or known.outcome)

    async def follow(self) -> None:
        """Read the waiting orders at intervals, until cancelled."""
        while True:
            await anyio.sleep(_REFRESH_SECONDS)
            await self.refresh()

    def __iter__(self) -> Iterator[WaitingSkip]:
        """Iterate over the waiting orders."""
        return iter(list(self._waiting.values()))

    def refuse_ordered(self, message: ConsumedMessage, batch_id: str | None, correlation_id: str | None) -> None:
        """Refuse a message if an order to skip it exists.

        :raises UndecodableMessage: such an order exists.
        """
        if self._waiting and (waiting := self._waiting.get(position_of(message))):
            raise UndecodableMessage(REASON, reason_of(waiting.order), batch_id, correlation_id)

    async def save_outcome(self, position: Position, outcome: SkipOutcome) -> None:
        """Save the outcome of an order, if one exists for the message. The order is closed after the offset's commit.

        :raises StoreError: the outcome is only in the memory of this process.
        """
        waiting = self._waiting.get(position)
        if waiting is None or self.store is None:
            return
        self._waiting[position] = replace(waiting, outcome=outcome)
        await self.store.save_outcome(waiting.order, outcome)

    async def close(self, waiting: WaitingSkip, outcome: SkipOutcome) -> None:
        """Store how an order ended, and remove it from the waiting orders.

        :raises StoreError: this failed, and the order still waits.
        """
        if self.store is None:
            return
        order = waiting.order
        position = order.position
        await self.store.close(SkipEvent(order, outcome, rfc3339(self.now()), self.instance))
        self._waiting.pop(position, None)
        log.warning(
            "skip_ordered_by_operator",
            topic=position.topic,
            partition=position.partition,
            offset=position.offset,
            outcome=outcome.value,
            reason=order.reason,
            ordered_by=order.ordered_by,
        )


def reason_of(order: SkipOrder) -> str:
    """The reason of an order, as text for the dead letter."""
    return f"{order.reason} (ordered by {order.ordered_by} at {order.ordered_at})"
