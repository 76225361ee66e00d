"""Says when to give way to other tasks, for work that would else hold up the event loop."""

from __future__ import annotations


class Turns:
    """Counts the work on messages, and says once a turn has had enough of it.

    :param messages: so many to a turn.
    :param size_bytes: so many bytes to a turn.
    """

    def __init__(self, *, messages: int, size_bytes: int) -> None:
        self._messages = messages
        self._bytes = size_bytes
        self._had_messages = 0
        self._had_bytes = 0

    def is_over_after(self, size_bytes: int) -> bool:
        """A message was dealt with. True where others are to have their turn now, and the next one begins.

        :param size_bytes: of it.
        """
        self._had_messages += 1
        self._had_bytes += size_bytes
        if self._had_messages >= self._messages or self._had_bytes >= self._bytes:
            self._had_messages = self._had_bytes = 0
            return True
        return False
