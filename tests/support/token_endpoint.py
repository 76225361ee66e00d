"""An endpoint that gives bearer tokens for client credentials, on the loopback interface."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.support.secured_kafka import SecuredKafka, server_context


class TokenEndpoint:
    """It gives what `answer` is set to, and keeps the requests.

    :param now: seconds, for a clock of the test's own.
    """

    def __init__(self) -> None:
        self.answer: object = {}
        self.status = 200
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.now = 0.0

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; never, where `answer` is None."""
        login = base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
        self.requests.append((login, {name: str(value) for name, value in (await request.post()).items()}))
        if self.answer is None:
            # Longer than any client waits.
            await asyncio.sleep(60)
        if isinstance(self.answer, bytes):
            return web.Response(body=self.answer, status=self.status)
        return web.json_response(self.answer, status=self.status, headers={"Location": "/elsewhere"})


@asynccontextmanager
async def running(endpoint: TokenEndpoint, secured: SecuredKafka | None = None) -> AsyncIterator[str]:
    """The URL of an endpoint that answers during the block.

    :param secured: for TLS.
    """
    application = web.Application()
    application.router.add_post("/token", endpoint.post)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(secured) if secured else None)
    await site.start()
    try:
        yield f"{'https' if secured else 'http'}://127.0.0.1:{runner.addresses[0][1]}/token"
    finally:
        await runner.cleanup()
