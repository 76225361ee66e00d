"""JSON replies."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from pydantic_core import to_json


class JsonResponse(web.Response):
    """A response with a complete body, which is sent with its head in one write.

    It writes what `web.Response` writes, without the checks for what it never has: chunks, cookies, compression, an
    empty body, or a status without a body.

    :param headers: all but those that every response has.
    """

    _writer: AbstractStreamWriter | None = None

    def __init__(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        web.StreamResponse.__init__(self, status=status, headers=headers)
        self._body: bytes = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Make the head."""
        if request.version != HttpVersion11 or request.method == hdrs.METH_HEAD:
            return await super().prepare(request)
        headers = self._headers
        headers[hdrs.CONTENT_LENGTH] = str(len(self._body))
        headers[hdrs.DATE] = rfc822_formatted_time()
        headers[hdrs.SERVER] = SERVER_SOFTWARE
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if not self._keep_alive:
            headers[hdrs.CONNECTION] = "close"
        self._writer = writer = request.writer
        await writer.write_headers(f"HTTP/1.1 {self._status} {self._reason}", headers)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Write the head and the body."""
        if self._writer is None:
            await super().write_eof(data)
            return
        writer, self._writer = self._writer, None
        self._eof_sent = True
        await writer.write_eof(self._body)


def reply_json(
    document: Mapping[str, Any],
    status: HTTPStatus = HTTPStatus.OK,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """A response with a document as JSON."""
    return reply_encoded(to_json(document), status, content_type=content_type, headers=headers)


def reply_encoded(
    encoded: bytes,
    status: HTTPStatus = HTTPStatus.OK,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """A response with encoded JSON. A newline is added, for people who read the response in a terminal."""
    return JsonResponse(status, encoded + b"\n", {**(headers or {}), hdrs.CONTENT_TYPE: content_type})
