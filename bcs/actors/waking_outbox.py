"""An outbox that wakes its publisher after each write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bcs.domain.history import HistoryEntry
from bcs.storage.ports import Outbox
from bcs.wire.published import OutboundMessage


@dataclass(frozen=True, slots=True)
class WakingOutbox:
    """Writes messages to an outbox, and wakes the publisher once the outbox has them.

    :param wake: wakes the publisher; must not block.
    """

    outbox: Outbox
    wake: Callable[[], None]

    async def append(self, messages: Sequence[OutboundMessage]) -> None:
        """See `OutboxWriter.append`."""
        await self.outbox.append(messages)
        self.wake()

    async def announce(self, messages: Sequence[OutboundMessage], explanation: HistoryEntry) -> None:
        """See `OutboxWriter.announce`."""
        await self.outbox.announce(messages, explanation)
        self.wake()
