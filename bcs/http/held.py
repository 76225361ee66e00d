"""The memory that callers use: bodies until the request is answered, and responses until they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from bcs.http.deadlines import Deadlines


class Holder(Protocol):
    """An object that holds bytes in memory; `held_bytes` is the number of these bytes."""

    held_bytes: int


class HeldBytes:
    """Counts the held bytes, and ends the slowest callers if there are too many bytes.

    :param most_bytes: the largest number of held bytes. One read of a socket may exceed this number.
    :param slow: the callers that the service waits for, one group for each kind of wait. A caller that is ended early
        releases its bytes.
    """

    def __init__(self, most_bytes: int, slow: Sequence[Deadlines[Any]]) -> None:
        self._most_bytes = most_bytes
        self._slow = slow
        self.total = 0

    def add(self, holder: Holder, count: int) -> bool:
        """Hold more bytes. If there are too many bytes, the slowest callers are ended; the holder may be one of them.

        :returns: False if there are still too many bytes, because no caller is slow.
        """
        holder.held_bytes += count
        self.total += count
        while self.total > self._most_bytes:
            slowest = max(self._slow, key=Deadlines.waited_seconds)
            if not slowest:
                return False
            self.release(slowest.end_oldest())
        return True

    def release(self, holder: Holder) -> None:
        """Release all bytes of a holder."""
        self.total -= holder.held_bytes
        holder.held_bytes = 0
