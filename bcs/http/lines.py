"""An answer whose lines are sent while they are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, final

import anyio
from aiohttp import hdrs, web

NDJSON: Final = "application/x-ndjson"


class Lines(Protocol):
    """Makes the lines of an answer."""

    @property
    def ended(self) -> bool:
        """True if all lines are made."""
        ...

    async def more(self) -> bytes:
        """Make some more lines, each with its end of line.

        :raises Exception: there can be no more lines.
        """
        ...

    def failed(self, problem: dict[str, Any]) -> bytes:
        """The last line, instead of the lines that could not be made.

        :param problem: the problem document.
        """
        ...


@final
class LinesResponse(web.StreamResponse):
    """A response with lines, which go to the caller as they are made.

    The next lines are made only when the operating system has taken the ones before. So a slow caller costs no memory,
    and no work is done for one that has left.

    :param lines: makes the lines.
    :param headers: all but those that every response has.
    :ivar held_bytes: see `Holder`.
    """

    def __init__(self, lines: Lines, headers: dict[str, str]) -> None:
        super().__init__(headers={**headers, hdrs.CONTENT_TYPE: NDJSON})
        self.lines = lines
        self.held_bytes = 0
        self._first = b""
        self._next: Callable[[], Awaitable[bytes]] = lines.more
        self._at_end: list[Callable[[], object]] = []
        self._sending = anyio.CancelScope()

    async def begin(self) -> None:
        """Make the first lines, so that a request that can't be answered gets a problem instead of this response."""
        self._first = await self.lines.more()

    def guard(self, following: Callable[[], Awaitable[bytes]]) -> None:
        """Have the next lines made by a function, which returns nothing after the last ones, and raises no error."""
        self._next = following

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call a function when the response has been sent, or can't be sent."""
        self._at_end.append(callback)

    async def write_eof(self, data: bytes = b"") -> None:
        """Send all lines.

        :raises ConnectionError: the caller has left.
        """
        with self._sending:
            await self._send(self._first)
            self._first = b""
            while following := await self._next():
                await self._send(following)
            await super().write_eof(data)
        if self._sending.cancelled_caught:
            raise ConnectionResetError("the caller has left")

    def caller_left(self) -> None:
        """End the work: nobody waits for the rest."""
        self._sending.cancel()

    def end(self) -> None:
        """Release all that the response needed."""
        while self._at_end:
            self._at_end.pop()()

    async def _send(self, lines: bytes) -> None:
        await self.write(lines)
        if self._payload_writer is not None:
            # `write` itself waits only after many bytes.
            await self._payload_writer.drain()
