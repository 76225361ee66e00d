"""What was read from Kafka and is not yet durable, over all incarnations of the intake."""

from __future__ import annotations

from bcs.actors.messages import Receipt


class UnderWay:
    """Counts the messages that batches still hold.

    An intake that dies, or loses its partitions, leaves them there. Its successor must count them too, or every death
    would allow as many more.
    """

    def __init__(self) -> None:
        self._bytes_of: dict[tuple[str, int, int, int], int] = {}
        self.bytes = 0

    @property
    def messages(self) -> int:
        """How many there are."""
        return len(self._bytes_of)

    def add(self, receipt: Receipt) -> None:
        """A batch was given this message."""
        size = receipt.message.size_bytes
        self._bytes_of[_key(receipt)] = size
        self.bytes += size

    def remove(self, receipt: Receipt) -> None:
        """The batch is done with it. Saying so twice changes nothing."""
        self.bytes -= self._bytes_of.pop(_key(receipt), 0)


def _key(receipt: Receipt) -> tuple[str, int, int, int]:
    message = receipt.message
    return message.topic, message.partition, message.offset, receipt.epoch
