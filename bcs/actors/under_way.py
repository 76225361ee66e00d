"""What was read from Kafka and is not yet durable, over all incarnations of the intake."""

from __future__ import annotations

from bcs.actors.messages import Receipt


class UnderWay:
    """Counts the messages that batches still hold.

    An intake that dies, or loses its partitions, leaves them there. Its successor must count them too, or every death
    would allow as many more.
    """

    def __init__(self) -> None:
        self._weights: dict[tuple[str, int, int, int], tuple[int, int]] = {}
        self.bytes = 0
        self.facts = 0

    @property
    def messages(self) -> int:
        """How many there are."""
        return len(self._weights)

    def add(self, receipt: Receipt, facts: int) -> None:
        """A batch was given this message.

        :param facts: as how many facts it counts.
        """
        size = receipt.message.size_bytes
        self._weights[_key(receipt)] = size, facts
        self.bytes += size
        self.facts += facts

    def remove(self, receipt: Receipt) -> None:
        """The batch is done with it. Saying so twice changes nothing."""
        size, facts = self._weights.pop(_key(receipt), (0, 0))
        self.bytes -= size
        self.facts -= facts


def _key(receipt: Receipt) -> tuple[str, int, int, int]:
    message = receipt.message
    return message.topic, message.partition, message.offset, receipt.epoch
