"""Gives way to other tasks after so much work, for what would else hold up the event loop."""

from __future__ import annotations

from anyio.lowlevel import checkpoint


class Turns:
    """Counts the work on messages, and gives way once a turn has had enough of it.

    :param messages: so many to a turn.
    :param size_bytes: so many bytes to a turn.
    """

    def __init__(self, *, messages: int, size_bytes: int) -> None:
        self._messages = messages
        self._bytes = size_bytes
        self._had_messages = 0
        self._had_bytes = 0

    async def after(self, size_bytes: int) -> None:
        """A message was dealt with.

        :param size_bytes: of it.
        """
        self._had_messages += 1
        self._had_bytes += size_bytes
        if self._had_messages >= self._messages or self._had_bytes >= self._bytes:
            self._had_messages = self._had_bytes = 0
            await checkpoint()
