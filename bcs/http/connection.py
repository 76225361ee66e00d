"""A connection of a caller: what aiohttp's lacks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from bcs.config.settings import Settings
from bcs.http.bodies import unreadable
from bcs.http.callers import Caller, Callers
from bcs.http.deadlines import Deadlines
from bcs.http.problems import Problem, fault, overloaded

# What has come of a head, and what is sent ahead while another request is answered: so much of each.
_MOST_BYTES_AHEAD = 64 * 1024
# aiohttp reads so much of a body ahead of the handler, twice.
_READ_BYTES = 64 * 1024
# A caller whose body was refused may go on sending for so long, so that the answer reaches the caller.
_LINGERING_SECONDS = 1.0


class Connection(web.RequestHandler):
    """A connection on which callers have their times, and on which a request fails at once that can't be read.

    aiohttp knows no time for a head, nor for the taking of an answer, and no bound for what is sent ahead. aiohttp's
    parser in C tells only the connection of a chunk that is none: the request goes on waiting for its body, which looks
    like a fault of the caller's speed. aiohttp's own answers to what is no HTTP are text that repeats the caller's;
    here they are problems as all others. No other module knows aiohttp's insides.

    :param settings: of the service.
    :param callers: watches all connections.
    :param crowded: whether there was no room for this connection; then it is closed with its first answer.
    """

    __slots__ = (
        "_arrived_bytes",
        "_callers",
        "_crowded",
        "_refused_body",
        "_retry_after_seconds",
        "_waiting",
        "_wire",
        "held_bytes",
    )

    def __init__(self, server: Any, *, settings: Settings, callers: Callers, crowded: bool, **options: Any) -> None:
        super().__init__(
            server,
            # Here the time of an idle connection is up before.
            keepalive_timeout=settings.http_idle_seconds * 2,
            lingering_time=_LINGERING_SECONDS,
            read_bufsize=_READ_BYTES,
            **options,
        )
        self._retry_after_seconds = settings.retry_after_seconds
        self._callers = callers
        self._crowded = crowded
        self._waiting: Deadlines[Caller] | None = None  # for a request
        self._arrived_bytes = 0
        self._refused_body: StreamReader | None = None
        self._wire: Any = None
        self.held_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        # aiohttp forgets the transport when it closes it, though what is unsent keeps it open.
        self._wire = transport
        # An answer counts as taken once the operating system has all of it.
        self._wire.set_write_buffer_limits(0)
        self._callers.connected.add(self)
        if self._crowded:
            self._callers.crowded.add(self)
        self._wait(self._callers.heads)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Wait for nothing any more."""
        self._wait(None)
        self._taken()
        self._callers.connected.discard(self)
        self._callers.crowded.discard(self)
        super().connection_lost(exc)
        if self._refused_body:
            self._refused_body.feed_eof()  # or aiohttp would go on waiting for the rest of it

    def data_received(self, data: bytes) -> None:
        """Take bytes from the caller."""
        super().data_received(data)
        if self._waiting is not None:
            if self._messages:
                self._wait(None)
                self._arrived_bytes = 0
            elif data:
                self._note_part_of_head(len(data))
        elif self._messages or (self._current_request and self._current_request.content.is_eof()):
            # Sent ahead: what came of a request before its answer is in aiohttp's memory.
            self._arrived_bytes += len(data)
            if self._arrived_bytes > _MOST_BYTES_AHEAD:
                self.close()
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            body = self._last_body()
            if body is not None and not body.is_eof():
                body.set_exception(web.RequestPayloadError("the body can't be read"))

    def pause_writing(self) -> None:
        """The caller does not take an answer as fast as it is sent."""
        super().pause_writing()
        self._callers.sendings.watch(self)
        self._callers.held.add(self, self._wire.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The caller has taken all of it."""
        self._taken()
        super().resume_writing()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, and wait for the next request."""
        if not request.content.is_eof():
            self._refused_body = request.content
        if self._close or self._crowded or self._refused_body:
            resp.force_close()
        sent = await super().finish_response(request, resp, start_time)
        if not self._messages:
            self._arrived_bytes = 0
            if self.transport is not None and resp.keep_alive:
                self._wait(self._callers.idle)
        return sent

    def end_idle(self) -> None:
        """Close a connection on which no request is under way."""
        self.force_close()

    def end_head(self, early: bool) -> None:
        """Refuse a request whose head has not come.

        :param early: True where that is for want of room, and not of time.
        """
        if self._arrived_bytes:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE if early else HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.force_close()  # an answer to nothing could be taken for that to a request which is on its way

    def end_sending(self) -> None:
        """Close a connection that does not take its answer."""
        self._taken()
        self._wire.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what no handler has answered."""
        super().handle_error(request, status, exc, message)  # raises when an answer has begun already
        correlation_id = secrets.token_hex(16)
        response = _PROBLEMS.get(status, fault)().response(correlation_id, self._retry_after_seconds)
        response.headers["X-Correlation-ID"] = correlation_id
        response.force_close()
        return response

    def _note_part_of_head(self, count: int) -> None:
        self._arrived_bytes += count
        if self._waiting is self._callers.idle:
            self._wait(self._callers.heads)
        if self._arrived_bytes > _MOST_BYTES_AHEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer a request whose head has not come, in the way of aiohttp's own parser."""
        self._wait(None)
        self._messages.append((_ErrInfo(status, TimeoutError(), ""), EMPTY_PAYLOAD))
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _wait(self, waiting: Deadlines[Caller] | None) -> None:
        """Wait for something, and no longer for what was waited for before."""
        if self._waiting is not None:
            self._waiting.forget(self)
        if waiting is not None:
            waiting.watch(self)
        self._waiting = waiting

    def _taken(self) -> None:
        self._callers.sendings.forget(self)
        self._callers.held.release(self)

    def _last_body(self) -> Any:
        """The body of the newest request, which the parser was reading."""
        waiting = [body for message, body in self._messages if not isinstance(message, _ErrInfo)]
        if waiting:
            return waiting[-1]
        return self._current_request.content if self._current_request else None


_PROBLEMS: dict[int, Callable[[], Problem]] = {
    HTTPStatus.BAD_REQUEST: unreadable,
    HTTPStatus.REQUEST_TIMEOUT: lambda: Problem(
        HTTPStatus.REQUEST_TIMEOUT, "head-too-late", "the head of the request did not come in time", retry=True
    ),
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: lambda: Problem(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large", "the head of the request is too large"
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: lambda: overloaded("too many connections at a time"),
}
