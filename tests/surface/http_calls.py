"""Calls over HTTP, and what is answered: status, headers and body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.parser import BytesHeaderParser
from typing import Any
from urllib.parse import urlsplit

import anyio
from aiohttp.web_urldispatcher import UrlDispatcher

from bcs.http.problems import KINDS
from tests.support.service import Answer, Orchestrator
from tests.surface.facts import lines_of
from tests.surface.placeholders import Placeholders, shape

CORRELATION_ID = "550e8400-e29b-41d4-a716-446655440000"
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
# Of the library, or another one each time.
_NOT_OURS = frozenset({"date", "server", "content-length"})


@contextmanager
def routers_seen() -> Iterator[list[UrlDispatcher]]:
    """Those that are made meanwhile; aiohttp has no other way from a service to its routes."""
    seen: list[UrlDispatcher] = []
    made = UrlDispatcher.__init__

    def note(router: UrlDispatcher) -> None:
        made(router)
        seen.append(router)

    UrlDispatcher.__init__ = note  # type: ignore[method-assign, assignment]
    try:
        yield seen
    finally:
        UrlDispatcher.__init__ = made  # type: ignore[method-assign]


def facts_of_routes(router: UrlDispatcher) -> list[str]:
    """A line for each method and path."""
    return sorted({f"route: {route.resource.canonical}: {route.method}" for route in router.routes() if route.resource})


def facts_of_problems() -> list[str]:
    """A line for each kind of problem that an answer can be."""
    return [f"problem: {kind}: {about.title}" for kind, about in sorted(KINDS.items())]


class Calls:
    """Asks, and keeps what was answered as lines.

    :param words: for what is another one each time.
    """

    def __init__(self, base: str, caller: Orchestrator, words: Placeholders) -> None:
        self._base = base
        self._caller = caller
        self._words = words
        self._answers: dict[str, list[str]] = {}

    @property
    def lines(self) -> list[str]:
        """The lines of all answers, by the names of the calls."""
        return [line for _, lines in sorted(self._answers.items()) for line in lines]

    async def ask(
        self,
        name: str,
        method: str,
        path: str,
        *,
        shape_only: bool = False,
        headers: Mapping[str, str] = {},
        **more: Any,
    ) -> Answer:
        """Ask.

        :param name: of the call; it begins each line.
        :param shape_only: keep the types of the values in the answer, and not the values.
        :param more: for aiohttp.
        """
        said = {"User-Agent": "surface", "X-Correlation-ID": CORRELATION_ID, **headers}
        answer = await self._caller.request(method, path, headers=said, **more)
        self._keep(f"{name} ({method} {self._words.text(path)})", answer, shape_only=shape_only)
        return answer

    async def look(self, path: str) -> Any:
        """The document at a path, to wait for something in it; nothing is kept."""
        return (await self._caller.get(path)).json

    async def send(self, name: str, request: bytes) -> None:
        """Send bytes as they are, and keep what is answered to them."""
        where = urlsplit(self._base)
        async with await anyio.connect_tcp(str(where.hostname), int(where.port or 0)) as stream:
            await stream.send(request)
            received, body_bytes = b"", None
            with anyio.fail_after(5):
                # The service may keep the connection open for a while, for what the caller still sends.
                while body_bytes is None or len(received.partition(_END_OF_HEAD)[2]) < body_bytes:
                    received += await stream.receive()
                    if (length := _LENGTH.search(received)) and _END_OF_HEAD in received:
                        body_bytes = int(length[1])
        head, _, body = received.partition(_END_OF_HEAD)
        status, _, headers = head.partition(b"\r\n")
        said = dict(BytesHeaderParser().parsebytes(headers))
        self._keep(name, Answer(int(status.split()[1]), said, body), shape_only=False)

    def _keep(self, name: str, answer: Answer, *, shape_only: bool) -> None:
        headers = {key: value for key, value in answer.headers.items() if key.lower() not in _NOT_OURS}
        assert name not in self._answers, name
        lines = [f"{name}: status {answer.status}"]
        lines += [f"{name}: header {key}: {self._words.text(value)}" for key, value in sorted(headers.items())]
        if "json" in answer.headers.get("Content-Type", ""):
            document = json.loads(answer.body)
            lines += lines_of(name, shape(document) if shape_only else self._words.document(document))
        self._answers[name] = lines
