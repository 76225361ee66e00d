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
    """A document as JSON, with a newline at its end for those who read it in a terminal."""
    body = to_json(document) + b"\n"
    return web.Response(status=status, body=body, content_type=content_type, headers=headers)
