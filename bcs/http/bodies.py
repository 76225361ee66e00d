"""Reading the body of a request: what goes wrong with it is the caller's fault, or nobody's."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from aiohttp import StreamReader, web

from bcs.http.deadlines import Deadlines
from bcs.http.held import HeldBytes
from bcs.http.problems import Problem, overloaded

BODY: Final = web.RequestKey("body", bytes)
"""The whole body of a request, once it has come."""

_SMALL_BYTES = 4096


class CallerLeft(Exception):
    """The connection was lost before the whole body had come: nobody waits for an answer."""


class Reading:
    """A body that is being read, and its bytes until the request is answered.

    :param task: reads it.
    """

    __slots__ = ("held_bytes", "problem", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.held_bytes = 0
        self.problem: Problem | None = None

    def end(self, early: bool) -> None:
        """Read no further.

        :param early: True where that is for want of room, and not of time.
        """
        self.problem = _no_room() if early else _too_late()
        if self.task is not asyncio.current_task():
            self.task.cancel()


class Bodies:
    """Reads bodies: each within its time, and all of them within their bytes.

    :param awaited: the bodies that have not come yet.
    :param held: counts their bytes.
    :param most_bytes: the largest body, decompressed.
    """

    def __init__(self, awaited: Deadlines[Reading], held: HeldBytes, most_bytes: int) -> None:
        self._awaited = awaited
        self._held = held
        self._most_bytes = most_bytes

    def take_small(self, request: web.Request) -> bool:
        """Take a body that has come together with its head, as most bodies do; small ones are not counted.

        :returns: False when it has not, or when something is wrong with it.
        """
        content = request.content
        if not content.is_eof() or content.total_bytes > _SMALL_BYTES or content.exception():
            return False
        request[BODY] = content.read_nowait()
        return True

    async def read(self, request: web.Request, reading: Reading) -> None:
        """Read the whole body into `request[BODY]`; its bytes count as held until `release`.

        :raises Problem: it came too late, or there is no room for it, or the bytes are not in the encoding that the
            headers name.
        :raises HTTPRequestEntityTooLarge: the body, decompressed, is larger than allowed.
        :raises CallerLeft: the connection was lost.
        """
        content = request.content
        if not content.is_eof():
            if request.transport is None:
                raise CallerLeft
            self._awaited.watch(reading)
        try:
            request[BODY] = await self._whole(content, reading)
        except web.RequestPayloadError as error:
            raise unreadable() from error
        except OSError as error:
            # aiohttp raises what the connection was lost with, which may be any error of a socket.
            raise CallerLeft from error
        except asyncio.CancelledError:
            # Not ended here, or not here alone: somebody wants to see the end of this connection.
            if reading.problem is None or reading.task.uncancel():
                raise
            raise reading.problem from None
        finally:
            self._awaited.forget(reading)

    def release(self, reading: Reading) -> None:
        """The request is answered."""
        self._held.release(reading)

    async def _whole(self, content: StreamReader, reading: Reading) -> bytes:
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


def unreadable() -> Problem:
    """400 for bytes that are no HTTP, or not in the encoding that the headers name."""
    detail = "the request can't be read: it is not HTTP, or its body is not in the encoding that its headers name"
    return Problem(HTTPStatus.BAD_REQUEST, "unreadable-request", detail)


def _too_late() -> Problem:
    return Problem(HTTPStatus.REQUEST_TIMEOUT, "body-too-late", "the request body did not come in time", retry=True)


def _no_room() -> Problem:
    return overloaded("too many bytes of requests and answers at a time")
