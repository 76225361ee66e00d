"""What was read from Kafka and is not yet durable, over all incarnations of the intake."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bcs.actors.messages import ApplyFacts, DeliveryToken
from bcs.config.settings import Settings
from bcs.domain.history import Position


class InFlight:
    """Delivers messages to batches, and counts those that the batches still hold.

    An intake that dies, or loses its partitions, leaves them there. Its successor must count them too, or every death
    would allow as many more.

    :param settings: how many there may be.
    :param deliver: gives a command to the batch's actor, and waits while that has no room.
    """

    def __init__(self, *, settings: Settings, deliver: Callable[[str, ApplyFacts], Awaitable[None]]) -> None:
        self._settings = settings
        self._deliver = deliver
        self._held: dict[tuple[str, int, int, int], tuple[ApplyFacts, int, int]] = {}
        self.bytes = 0
        self.facts = 0

    @property
    def messages(self) -> int:
        """How many there are."""
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """True while as much is in flight as may be."""
        settings = self._settings
        return (
            self.messages >= settings.intake_max_in_flight
            or self.bytes >= settings.intake_max_in_flight_bytes
            or self.facts >= settings.intake_max_in_flight_facts
        )

    async def deliver(self, command: ApplyFacts, token: DeliveryToken) -> None:
        """Give a message to its batch.

        Cancellation while this waits for room leaves nothing with the batch.

        :param token: that of the command.
        """
        size, facts = token.message.size_bytes, command.weight
        self._held[_key(token)] = command, size, facts
        self.bytes += size
        self.facts += facts
        delivered = False
        try:
            await self._deliver(command.batch_id, command)
            delivered = True
        finally:
            if not delivered:
                self.remove(token)

    def remove(self, token: DeliveryToken) -> None:
        """The batch is done with it. Saying so twice changes nothing."""
        held = self._held.pop(_key(token), None)
        if held is not None:
            _, size, facts = held
            self.bytes -= size
            self.facts -= facts

    def command_at(self, position: Position, epoch: int) -> ApplyFacts | None:
        """What a batch holds of a message; None where none does.

        :param epoch: of the ownership in which it was read.
        """
        held = self._held.get((position.topic, position.partition, position.offset, epoch))
        return None if held is None else held[0]


def _key(token: DeliveryToken) -> tuple[str, int, int, int]:
    message = token.message
    return message.topic, message.partition, message.offset, token.epoch
