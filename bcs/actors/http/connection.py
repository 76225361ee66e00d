"""A connection of a caller: what aiohttp's lacks."""

from __future__ import annotations

import secrets
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import _ErrInfo

from bcs.actors.http.bodies import unreadable


class Connection(web.RequestHandler):
    """A connection on which a request fails at once when the rest of its body can't be read.

    aiohttp's parser in C tells only the connection of a chunk that is none. The request goes on waiting for its body
    until its deadline, which looks like a fault of this service. aiohttp's own answers to what is no HTTP are text
    that repeats the caller's; here they are problems as all others. No other module knows aiohttp's insides.
    """

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the caller."""
        super().data_received(data)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            body = self._last_body()
            if body is not None and not body.is_eof():
                body.set_exception(web.RequestPayloadError("the body can't be read"))

    def _last_body(self) -> Any:
        """The body of the newest request, which the parser was reading."""
        waiting = [body for message, body in self._messages if not isinstance(message, _ErrInfo)]
        if waiting:
            return waiting[-1]
        return self._current_request.content if self._current_request else None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what no handler has answered."""
        plain = super().handle_error(request, status, exc, message)  # raises when an answer has begun already
        if status != HTTPStatus.BAD_REQUEST:
            return plain
        correlation_id = secrets.token_hex(16)
        response = unreadable().response(correlation_id, 0)
        response.headers["X-Correlation-ID"] = correlation_id
        response.force_close()
        return response
