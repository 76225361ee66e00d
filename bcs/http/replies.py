"""JSON replies."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from pydantic_core import to_json


class JsonResponse(web.Response):
    """A response with a complete body.

    :param headers: all but those that every response has.
    """

    def __init__(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        # Without the constructor of `web.Response`, which checks arguments that this class does not have.
        web.StreamResponse.__init__(self, status=status, headers=headers)
        self._body: bytes = body

    def encode(self, *, keep_alive: bool) -> bytes:
        """The bytes that aiohttp would send in HTTP/1.1, in a third of the time."""
        lines = [f"{name}: {value}\r\n" for name, value in self._headers.items()]
        if not keep_alive:
            lines.append("Connection: close\r\n")
        head = (
            f"HTTP/1.1 {self._status} {self._reason}\r\n{''.join(lines)}Content-Length: {len(self._body)}\r\n"
            f"Date: {rfc822_formatted_time()}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n"
        )
        return head.encode() + self._body


def reply_json(
    document: Mapping[str, Any],
    status: HTTPStatus = HTTPStatus.OK,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> JsonResponse:
    """A response with a document as JSON."""
    return reply_encoded(to_json(document), status, content_type=content_type, headers=headers)


def reply_encoded(
    encoded: bytes,
    status: HTTPStatus = HTTPStatus.OK,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> JsonResponse:
    """A response with encoded JSON. A newline is added, for people who read the response in a terminal."""
    return JsonResponse(status, encoded + b"\n", {**(headers or {}), hdrs.CONTENT_TYPE: content_type})
