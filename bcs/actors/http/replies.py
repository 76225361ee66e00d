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
    members: Mapping[str, bytes] | None = None,
) -> web.Response:
    """A document as JSON, with a newline at its end for those who read it in a terminal.

    :param members: more of the document's members, whose values are JSON already.
    """
    body = to_json(document)
    for name, value in (members or {}).items():
        body = b"%s,%s:%s}" % (body[:-1], to_json(name), value)
    body += b"\n"
    return web.Response(status=status, body=body, content_type=content_type, headers=headers)
