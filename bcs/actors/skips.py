"""The orders of operators to pass over messages, as the intake carries them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

import anyio
import structlog

from bcs.contracts.published import rfc3339
from bcs.domain.errors import StoreError, UndecodableMessage
from bcs.domain.history import Position
from bcs.domain.skips import SkipEvent, SkipOrder, SkipOutcome

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")

REASON: Final = "skipped_by_operator"
_LOOK_SECONDS = 1.0


class SkipStore(Protocol):
    """Where the orders are."""

    async def waiting(self) -> list[SkipOrder]:
        """The orders that wait."""
        ...

    async def close(self, event: SkipEvent) -> None:
        """Note what became of an order, which waits no longer."""
        ...


@dataclass(slots=True, kw_only=True)
class Skips:
    """The orders that wait, by the place of the message. Every replica follows all, and carries out what it owns.

    :param store: None where there is none that operators can write to.
    :param instance: this replica's name.
    :param now: wall-clock time.
    """

    store: SkipStore | None
    instance: str
    now: Callable[[], datetime]
    _orders: dict[Position, SkipOrder] = field(default_factory=dict)

    async def look(self) -> None:
        """Look for orders once. While the store is away, those that are known stay."""
        if self.store is None:
            return
        try:
            self._orders = {order.position: order for order in await self.store.waiting()}
        except StoreError as error:
            log.debug("skip_orders_not_read", error=str(error))

    async def follow(self) -> None:
        """Look for orders again and again, until cancelled."""
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            await self.look()

    def __iter__(self) -> Iterator[SkipOrder]:
        """The orders that wait."""
        return iter(list(self._orders.values()))

    def refuse_ordered(self, position: Position, batch_id: str | None, correlation_id: str | None) -> None:
        """Refuse a message that is to be passed over.

        :raises UndecodableMessage: it is one.
        """
        if self._orders and (order := self._orders.get(position)):
            raise UndecodableMessage(REASON, reason_of(order), batch_id, correlation_id)

    async def closed(self, position: Position, outcome: SkipOutcome) -> None:
        """Note what became of the order about a message, if there is one.

        :raises StoreError: it could not be noted, and is carried out again.
        """
        order = self._orders.get(position)
        if order is None or self.store is None:
            return
        await self.store.close(SkipEvent(order, outcome, rfc3339(self.now()), self.instance))
        self._orders.pop(position, None)
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
    """Why a message was passed over, for its dead letter."""
    return f"{order.reason} (ordered by {order.ordered_by} at {order.ordered_at})"
