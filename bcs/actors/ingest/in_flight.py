"""The messages that were read from Kafka and are not yet durable, of all incarnations of the intake."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bcs.actors.messages import ApplyFacts, DeliveryToken, position_of
from bcs.config.settings import Settings
from bcs.domain.history import Position


class InFlight:
    """Delivers messages to batches, and counts the messages that the batches have not finished.

    When an intake dies or loses its partitions, its messages stay with the batches. The next intake must count these
    messages, too: otherwise each death would raise the limit.

    :param settings: have the limits.
    :param deliver: sends a command to the actor of a batch, and waits while the mailbox of the actor is full.
    """

    def __init__(self, *, settings: Settings, deliver: Callable[[str, ApplyFacts], Awaitable[None]]) -> None:
        self._settings = settings
        self._deliver = deliver
        self._messages: dict[DeliveryToken, tuple[ApplyFacts, int, int]] = {}
        self.bytes = 0
        self.facts = 0

    @property
    def messages(self) -> int:
        """The number of messages in flight."""
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        """True while a limit is reached."""
        settings = self._settings
        return (
            self.messages >= settings.intake_max_in_flight
            or self.bytes >= settings.intake_max_in_flight_bytes
            or self.facts >= settings.intake_max_in_flight_facts
        )

    async def deliver(self, command: ApplyFacts, token: DeliveryToken) -> None:
        """Deliver a message to its batch.

        Cancellation while this waits for room means that the batch does not get the message.

        :param token: the token of the command.
        """
        size, facts = token.message.size_bytes, command.weight
        self._messages[token] = command, size, facts
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
        """Remove a message that the batch has finished. A repeated call changes nothing."""
        entry = self._messages.pop(token, None)
        if entry is not None:
            _, size, facts = entry
            self.bytes -= size
            self.facts -= facts

    def command_at(self, position: Position, epoch: int) -> ApplyFacts | None:
        """The command for a message in flight; None if the message is not in flight.

        :param epoch: the epoch of the ownership in which the message was read.
        """
        for token, (command, _, _) in self._messages.items():
            if token.epoch == epoch and position_of(token.message) == position:
                return command
        return None
