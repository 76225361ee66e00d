"""The orders of operators to pass over messages, as the intake carries them out."""

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
_LOOK_SECONDS = 1.0


class SkipStore(Protocol):
    """Where the orders are."""

    async def waiting(self) -> list[WaitingSkip]:
        """The orders that wait."""
        ...

    async def carry_out(self, order: SkipOrder, outcome: SkipOutcome) -> None:
        """Note what was done for an order, which is closed later."""
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
    _waiting: dict[Position, WaitingSkip] = field(default_factory=dict)

    async def look(self) -> None:
        """Look for orders once. While the store is away, those that are known stay."""
        if self.store is None:
            return
        try:
            found = await self.store.waiting()
        except StoreError as error:
            log.debug("skip_orders_not_read", error=str(error))
        else:
            self._waiting = {waiting.order.position: self._known(waiting) for waiting in found}

    def _known(self, waiting: WaitingSkip) -> WaitingSkip:
        """The order, with what this process did for it: the store may not have been told."""
        known = self._waiting.get(waiting.order.position)
        if known is None or known.order != waiting.order:
            return waiting
        return replace(waiting, outcome=waiting.outcome or known.outcome)

    async def follow(self) -> None:
        """Look for orders again and again, until cancelled."""
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            await self.look()

    def __iter__(self) -> Iterator[WaitingSkip]:
        """The orders that wait."""
        return iter(list(self._waiting.values()))

    def refuse_ordered(self, message: ConsumedMessage, batch_id: str | None, correlation_id: str | None) -> None:
        """Refuse a message that is to be passed over.

        :raises UndecodableMessage: it is one.
        """
        if self._waiting and (waiting := self._waiting.get(position_of(message))):
            raise UndecodableMessage(REASON, reason_of(waiting.order), batch_id, correlation_id)

    async def carried_out(self, position: Position, outcome: SkipOutcome) -> None:
        """Note that a message was passed over, if that was ordered. The order is closed after the offset's commit.

        :raises StoreError: only this process knows it.
        """
        waiting = self._waiting.get(position)
        if waiting is None or self.store is None:
            return
        self._waiting[position] = replace(waiting, outcome=outcome)
        await self.store.carry_out(waiting.order, outcome)

    async def close(self, waiting: WaitingSkip, outcome: SkipOutcome) -> None:
        """Note what became of an order, which waits no longer.

        :raises StoreError: it could not be noted, and the order waits on.
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
    """Why a message was passed over, for its dead letter."""
    return f"{order.reason} (ordered by {order.ordered_by} at {order.ordered_at})"
