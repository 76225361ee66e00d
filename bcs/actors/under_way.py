"""What was read from Kafka and is not yet durable, over all incarnations of the intake."""

from __future__ import annotations

from bcs.actors.messages import Receipt, RecordFacts
from bcs.domain.history import Position


class UnderWay:
    """Counts the messages that batches still hold.

    An intake that dies, or loses its partitions, leaves them there. Its successor must count them too, or every death
    would allow as many more.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, int, int, int], tuple[RecordFacts, int, int]] = {}
        self.bytes = 0
        self.facts = 0

    @property
    def messages(self) -> int:
        """How many there are."""
        return len(self._held)

    def add(self, command: RecordFacts, receipt: Receipt) -> None:
        """A batch was given this message.

        :param receipt: that of the command.
        """
        size, facts = receipt.message.size_bytes, command.weight
        self._held[_key(receipt)] = command, size, facts
        self.bytes += size
        self.facts += facts

    def remove(self, receipt: Receipt) -> None:
        """The batch is done with it. Saying so twice changes nothing."""
        held = self._held.pop(_key(receipt), None)
        if held is not None:
            _, size, facts = held
            self.bytes -= size
            self.facts -= facts

    def command_at(self, position: Position, epoch: int) -> RecordFacts | None:
        """What a batch holds of a message; None where none does.

        :param epoch: of the ownership in which it was read.
        """
        held = self._held.get((position.topic, position.partition, position.offset, epoch))
        return None if held is None else held[0]


def _key(receipt: Receipt) -> tuple[str, int, int, int]:
    message = receipt.message
    return message.topic, message.partition, message.offset, receipt.epoch
