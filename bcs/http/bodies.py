"""Reads request bodies. A failed read is an error of the caller or the network, and no fault of this service."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import StreamReader, web

from bcs.http.deadlines import Deadlines
from bcs.http.held import HeldBytes, Holder
from bcs.http.problems import Problem, overloaded

BODY: Final = web.RequestKey("body", bytes)
"""The complete body of a request. Set once the body is complete."""

_SMALL_BYTES = 4096


class CallerLeft(Exception):
    """The connection was lost before the body was complete, so no caller waits for a response."""


class Reading:
    """A body in progress. Its bytes count as held until the request is answered.

    :param task: the task that reads the body.
    """

    __slots__ = ("held_bytes", "problem", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.held_bytes = 0
        self.problem: Problem | None = None

    def end(self, early: bool) -> None:
        """Stop reading.

        :param early: True if there is no room; False if the time is over.
        """
        self.problem = _no_room() if early else _too_late()
        if self.task is not asyncio.current_task():
            self.task.cancel()


class Bodies:
    """Reads bodies, with a time limit for each body and a size limit for all bodies together.

    :param awaited: the bodies that are not complete yet.
    :param held: counts the bytes of all bodies.
    :param most_bytes: the largest size of a body, decompressed.
    """

    def __init__(self, awaited: Deadlines[Reading], held: HeldBytes, most_bytes: int) -> None:
        self._awaited = awaited
        self._held = held
        self._most_bytes = most_bytes

    def take_small(self, request: web.Request) -> bool:
        """Take a small body that arrived together with its head, like most bodies. Small bodies are not counted.

        :returns: False if the body is incomplete, large, or unreadable.
        """
        content = request.content
        small_bytes = min(_SMALL_BYTES, self._most_bytes)
        if not content.is_eof() or content.total_bytes > small_bytes or content.exception():
            return False
        request[BODY] = _all_of(content)
        return True

    async def read(self, request: web.Request, reading: Reading) -> None:
        """Read the whole body into `request[BODY]`; its bytes count as held until `release`.

        :raises Problem: the body was too late, or there is no room, or the encoding is not the one in the headers.
        :raises HTTPRequestEntityTooLarge: the body, decompressed, is larger than allowed.
        :raises CallerLeft: the connection was lost.
        """
        content = request.content
        if not content.is_eof():
            if request.transport is None:
                raise CallerLeft
            self._awaited.watch(reading)
        try:
            request[BODY] = await self._complete_body(content, reading)
        except web.RequestPayloadError as error:
            raise unreadable() from error
        except OSError as error:
            # If the connection is lost, aiohttp raises the error of the socket, which may be any OSError.
            raise CallerLeft from error
        except asyncio.CancelledError:
            # `Reading.end` has not cancelled the task, or is not the only reason: the connection must end.
            if reading.problem is None or reading.task.uncancel():
                raise
            raise reading.problem from None
        finally:
            self._awaited.unwatch(reading)

    def keep(self, reading: Reading, holder: Holder) -> None:
        """Have another holder hold the bytes of a body, because they are needed for longer."""
        holder.held_bytes, reading.held_bytes = reading.held_bytes, 0

    def release(self, holder: Holder) -> None:
        """Release the bytes of a body, because the request is answered."""
        self._held.release(holder)

    async def _complete_body(self, content: StreamReader, reading: Reading) -> bytes:
        body = bytearray()
        while more := await content.readany():
            self._hold(reading, len(more))
            body += more
        return bytes(body)

    def _hold(self, reading: Reading, count: int) -> None:
        fits = self._held.add(reading, count)
        if reading.problem is not None:
            raise reading.problem
        if not fits:
            raise _no_room()
        if reading.held_bytes > self._most_bytes:
            raise web.HTTPRequestEntityTooLarge(self._most_bytes)


def _all_of(content: StreamReader) -> bytes:
    # `StreamReader.read_nowait` would also run the parser again, for bytes that can't be there.
    return b"".join(content._buffer) if content.total_bytes else b""


def unreadable() -> Problem:
    """400: the bytes are not HTTP, or the encoding of the body is not the one in the headers."""
    detail = "the request can't be read: it is not HTTP, or its body does not have the encoding of its headers"
    return Problem("unreadable-request", detail)


def _too_late() -> Problem:
    return Problem("body-too-late", "the request body did not arrive in time")


def _no_room() -> Problem:
    return overloaded("too many bytes of requests and answers at a time")
