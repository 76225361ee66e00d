"""Decides when long work must yield to other tasks, because it would block the event loop."""

from __future__ import annotations


class Turns:
    """Counts messages and their bytes, and ends a turn when one of the limits is reached.

    :param messages: the limit of messages per turn.
    :param size_bytes: the limit of bytes per turn.
    """

    def __init__(self, *, messages: int, size_bytes: int) -> None:
        self._max_messages = messages
        self._max_bytes = size_bytes
        self._message_count = 0
        self._byte_count = 0

    def is_over_after(self, size_bytes: int) -> bool:
        """Count one message; True if the turn is over, and the caller must yield. The next call begins a new turn.

        :param size_bytes: the size of the message.
        """
        self._message_count += 1
        self._byte_count += size_bytes
        if self._message_count >= self._max_messages or self._byte_count >= self._max_bytes:
            self._message_count = self._byte_count = 0
            return True
        return False
