"""JSON replies."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web
from pydantic_core import to_json


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
    return web.Response(status=status, body=encoded + b"\n", content_type=content_type, headers=headers)
