"""The memory that callers take: bodies until their request is answered, and answers until they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from bcs.http.deadlines import Deadlines


class Holder(Protocol):
    """Something that bytes are held for; `held_bytes` says how many."""

    held_bytes: int


class HeldBytes:
    """Counts the bytes that are held, and lets go of the slowest callers where there are too many.

    :param most_bytes: so many may be held in all; what one read of a socket brings comes on top.
    :param slow: those who keep the service waiting, of each kind by itself; what is ended early lets go of its bytes.
    """

    def __init__(self, most_bytes: int, slow: Sequence[Deadlines[Any]]) -> None:
        self._most_bytes = most_bytes
        self._slow = slow
        self.total = 0

    def add(self, holder: Holder, count: int) -> bool:
        """Hold more bytes. If there are too many now, the slowest callers are ended; this one may be among them.

        :returns: False where there are too many all the same: nobody is slow.
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
        """Hold nothing for it any more."""
        self.total -= holder.held_bytes
        holder.held_bytes = 0
