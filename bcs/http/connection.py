"""The connection of a caller, with the limits that aiohttp lacks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.hdrs import EXPECT
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from bcs.config.settings import Settings
from bcs.http.bodies import unreadable
from bcs.http.callers import Caller, Callers, Crowded
from bcs.http.deadlines import Deadlines
from bcs.http.guard import Handler
from bcs.http.lines import LinesResponse
from bcs.http.problems import Problem, fault, overloaded
from bcs.http.replies import JsonResponse

# How many bytes an incomplete head may have, and requests that arrive while another request is answered.
_MOST_BYTES_AHEAD = 64 * 1024
# aiohttp buffers up to twice this many bytes of a body before the handler reads them.
_READ_BYTES = 64 * 1024
# After BCS refused a body, the caller may send for this long. Closing at once could lose the response.
_LINGERING_SECONDS = 1.0


class Connection(web.RequestHandler):
    """A connection with time limits, on which an unreadable request fails at once.

    aiohttp has no time limit for a head or for sending a response, and no size limit for requests that arrive early. If
    a chunk is invalid, the C parser of aiohttp notifies only the connection. The request keeps waiting for its body,
    and the caller would seem to be slow. If the bytes are not HTTP, aiohttp answers with text that repeats the text of
    the caller; this class answers with a problem document. Besides this class, only `JsonResponse` and `Bodies` use the
    internals of aiohttp.

    Most requests arrive complete, on an idle connection, for a path without parameters. They are answered at once. The
    loop, the router and the responses of aiohttp, which answer all others, take twice the time for the same answer.

    :param exact: the handlers of the paths without parameters, by method and path, all but those of HEAD.
    :param unrouted: answers a request whose target is no path, as in `OPTIONS *` and `CONNECT`. The router of aiohttp
        answers these with plain text.
    :param settings: the settings of the service.
    :param callers: watches all connections.
    :param network: the network of the caller's address.
    :param crowded: why there is no room for this connection, which BCS closes after its first response; None if there
        is room.
    """

    __slots__ = (
        "_answering",
        "_arrived_bytes",
        "_callers",
        "_crowded",
        "_exact",
        "_loop_began",
        "_note_taken",
        "_refused_body",
        "_retry_after_seconds",
        "_streamed",
        "_unrouted",
        "_waiting",
        "_wire",
        "held_bytes",
        "network",
    )

    def __init__(
        self,
        server: Any,
        *,
        exact: Mapping[tuple[str, str], Handler],
        unrouted: Handler,
        settings: Settings,
        callers: Callers,
        network: str,
        crowded: Crowded | None,
        **options: Any,
    ) -> None:
        super().__init__(
            server,
            lingering_time=_LINGERING_SECONDS,
            read_bufsize=_READ_BYTES,
            **options,
        )
        self._exact = exact
        self._unrouted = unrouted
        self._answering: asyncio.Task[None] | None = None
        self._loop_began = False
        # Older releases of aiohttp do not count messages.
        self._note_taken: Callable[[], object] = getattr(self._parser, "message_consumed", lambda: None)
        self._retry_after_seconds = settings.retry_after_seconds
        self._callers = callers
        self.network = network
        self._crowded = crowded
        self._waiting: Deadlines[Caller] | None = None  # the wait for a request
        self._arrived_bytes = 0
        self._refused_body: StreamReader | None = None
        self._streamed: LinesResponse | None = None
        self._wire: Any = None
        self.held_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        # aiohttp drops its reference when it closes the transport, but unsent bytes keep the transport open.
        self._wire = transport
        # A response counts as sent once the operating system has all of its bytes.
        self._wire.set_write_buffer_limits(0)
        self._callers.connect(self, self._crowded)
        self._wait(self._callers.heads)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End all waiting for this caller."""
        self._wait(None)
        self._release_sending()
        self._callers.disconnect(self)
        super().connection_lost(exc)
        if self._refused_body:
            self._refused_body.feed_eof()  # otherwise aiohttp keeps waiting for the rest of the body
        if self._streamed:
            self._streamed.caller_left()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the caller."""
        # aiohttp must not wake its loop for a request that is answered at once.
        waiter, self._waiter = self._waiter, None
        # The first packet after a wait begins a request.
        completes_body = self._waiting is None and self._is_body_incomplete()
        super().data_received(data)
        self._waiter = waiter
        if self._waiting is not None:
            if self._messages:
                self._wait(None)
                self._arrived_bytes = 0
            elif data:
                self._note_part_of_head(len(data))
        elif completes_body:
            pass  # `Bodies` limits these bytes
        elif self._messages or (self._current_request and self._current_request.content.is_eof()):
            # The caller sends the next request before the response; its bytes are in the memory of aiohttp.
            self._arrived_bytes += len(data)
            if self._arrived_bytes > _MOST_BYTES_AHEAD:
                self.close()
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            body = self._last_body()
            if body is not None and not body.is_eof():
                body.set_exception(web.RequestPayloadError("the body can't be read"))
        if self._messages and self._answering is None and not self._answer_at_once():
            self._wake_loop()

    async def start(self) -> None:
        """Run the loop of aiohttp, from the first request on that is not answered at once."""
        self._loop_began = True
        if self._answering is not None or not self._messages:
            # As aiohttp's loop waits. That loop takes a few turns to wait again, and meanwhile a quick caller sends its
            # next request, so that the loop, once it has begun, may have all of them.
            try:
                self._waiter = self._loop.create_future()
                await self._waiter
            finally:
                self._waiter = None
        if not self._force_close:
            await super().start()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 (aiohttp's name)
        """End the connection: wait for the answer, but no longer than twice the timeout."""
        await super().shutdown(timeout)
        if self._answering is not None:
            self._answering.cancel()

    def pause_writing(self) -> None:
        """The caller receives the response more slowly than BCS sends it."""
        super().pause_writing()
        self._callers.sendings.watch(self)
        self._callers.held.add(self, self._wire.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The caller has received all bytes."""
        self._release_sending()
        super().resume_writing()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response, and wait for the next request."""
        if isinstance(resp, web.HTTPException):
            resp = await self._unrouted(request)  # type: ignore[arg-type]
        if not request.content.is_eof():
            self._refused_body = request.content
        # aiohttp drops the bytes after a request for an upgrade that it does not know.
        if self._close or self._crowded or self._refused_body or request._message.upgrade:
            resp.force_close()
        self._streamed = resp if type(resp) is LinesResponse else None
        try:
            sent = await super().finish_response(request, resp, start_time)
        finally:
            if self._streamed is not None:
                self._streamed.end()
                self._streamed = None
        self._wait_for_next(keep_alive=bool(resp.keep_alive))
        return sent

    def end_idle(self) -> None:
        """Close a connection that has no request."""
        self.force_close()

    def end_head(self, early: bool) -> None:
        """Refuse a request whose head is incomplete.

        :param early: True if there is no room; False if the time is over.
        """
        if self._arrived_bytes:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE if early else HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.force_close()  # the caller could take a response for the one to a request that is still on its way

    def end_sending(self) -> None:
        """Close a connection whose caller does not receive the response."""
        self._release_sending()
        self._wire.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that no handler has answered."""
        super().handle_error(request, status, exc, message)  # raises if a response has already begun
        if isinstance(exc, LineTooLong):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        correlation_id = secrets.token_hex(16)
        response = _PROBLEMS.get(status, fault)().response(correlation_id, self._retry_after_seconds)
        response.headers["X-Correlation-ID"] = correlation_id
        response.force_close()
        return response

    def _answer_at_once(self) -> bool:
        """Answer a request without the loop of aiohttp, if this is possible."""
        message, body = self._messages[0]
        if self._loop_began and (self._waiter is None or self._waiter.done()):
            return False  # the loop of aiohttp is at work
        if isinstance(message, _ErrInfo) or len(self._messages) > 1 or self._crowded:
            return False
        handler = self._exact.get((message.method, message.path))
        if handler is None or not body.is_eof() or message.version != HttpVersion11:
            return False
        if message.upgrade or EXPECT in message.headers or self._close or self._request_factory is None:
            return False
        self._messages.popleft()
        self._note_taken()
        writer = StreamWriter(self, self._loop)
        request = self._request_factory(message, body, self, writer, self._task_handler)  # type: ignore[arg-type]
        # As aiohttp's loop does, so that aiohttp knows at a stop that a request is in progress.
        self._request_in_progress, self._current_request = True, request
        self._answering = self._loop.create_task(self._answer(request, handler))
        return True

    async def _answer(self, request: Any, handler: Handler) -> None:
        keep_alive = False
        try:
            response = await handler(request)
            if isinstance(response, JsonResponse):
                keep_alive = request.keep_alive and response.keep_alive is not False and not self._close
                await self._send(response.encode(keep_alive=keep_alive))
                self._wait_for_next(keep_alive=keep_alive)
            else:
                _, lost = await self.finish_response(request, response, None)
                keep_alive = bool(response.keep_alive) and not lost
        except ConnectionError:
            keep_alive = False  # the caller has left
        finally:
            self._answering = self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None and not self._handler_waiter.done():
                self._handler_waiter.set_result(None)
            if not keep_alive or self._close:
                self.force_close()
            elif self._messages and not self._answer_at_once():
                # A quick caller sends its next request before this task has noticed that the response was sent.
                self._wake_loop()

    async def _send(self, data: bytes) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        transport.write(data)
        if self._paused:
            await self._drain_helper()

    def _wake_loop(self) -> None:
        """Have the next request answered by the loop of aiohttp."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wait_for_next(self, *, keep_alive: bool) -> None:
        if not self._messages:
            self._arrived_bytes = 0
            if self.transport is not None and keep_alive:
                self._wait(self._callers.idle)

    def _process_keepalive(self) -> None:
        # BCS closes idle connections itself.
        self._keepalive_handle = None

    def _note_part_of_head(self, count: int) -> None:
        self._arrived_bytes += count
        if self._waiting is self._callers.idle:
            self._wait(self._callers.heads)
        if self._arrived_bytes > _MOST_BYTES_AHEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer a request whose head is incomplete, in the same way as the parser of aiohttp does."""
        self._wait(None)
        self._messages.append((_ErrInfo(status, TimeoutError(), ""), EMPTY_PAYLOAD))
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _wait(self, waiting: Deadlines[Caller] | None) -> None:
        """Start to wait with a time limit, and end the wait before; None only ends the wait before."""
        if self._waiting is not None:
            self._waiting.unwatch(self)
        if waiting is not None:
            waiting.watch(self)
        self._waiting = waiting

    def _release_sending(self) -> None:
        self._callers.sendings.unwatch(self)
        self._callers.held.release(self)

    def _is_body_incomplete(self) -> bool:
        """True if bytes belong to the request that is answered now, or else to the one that is answered next."""
        if self._current_request:
            return not self._current_request.content.is_eof()
        return bool(self._messages) and not self._messages[0][1].is_eof()

    def _last_body(self) -> Any:
        """The body of the newest request, which is the body that the parser reads."""
        waiting = [body for message, body in self._messages if not isinstance(message, _ErrInfo)]
        if waiting:
            return waiting[-1]
        return self._current_request.content if self._current_request else None


_PROBLEMS: dict[int, Callable[[], Problem]] = {
    HTTPStatus.BAD_REQUEST: unreadable,
    HTTPStatus.REQUEST_TIMEOUT: lambda: Problem("head-too-late", "the head of the request did not arrive in time"),
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: lambda: Problem(
        "head-too-large", "the head of the request is too large"
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: lambda: overloaded("too many connections at a time"),
}
