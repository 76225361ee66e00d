"""The description of the API."""

from __future__ import annotations

import anyio.to_thread
from aiohttp import web

from bcs.http.openapi import encoded_openapi
from bcs.http.replies import reply_encoded


async def describe(_: web.Request) -> web.Response:
    """GET /openapi.json."""
    # The first request makes the document, which would hold up the event loop.
    return reply_encoded(await anyio.to_thread.run_sync(encoded_openapi))
