"""Reads the stream of the page `/ui` as a browser does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import anyio

from tests.support.waiting import PATIENCE_SECONDS

UI_EVENTS = "/internal/v1/ui/events"


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    kind: str
    data: Any


@dataclass(frozen=True)
class OpenStream:
    """A response that is a stream.

    :param events: the events, until the service ends the stream.
    """

    response: aiohttp.ClientResponse
    events: AsyncIterator[Event]

    async def next(self) -> Event:
        """The next event."""
        with anyio.fail_after(PATIENCE_SECONDS):
            return await anext(self.events)

    async def snapshot(self) -> Any:
        """The next snapshot."""
        event = await self.next()
        while event.kind == "hello":
            event = await self.next()
        assert event.kind == "snapshot", event
        return event.data

    async def rest(self) -> list[Event]:
        """All events that are still to come; the stream has to end."""
        with anyio.fail_after(PATIENCE_SECONDS):
            return [event async for event in self.events]


@asynccontextmanager
async def open_stream(base: str, *, token: str | None = None) -> AsyncIterator[OpenStream]:
    """Open a stream; its status may be any."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession(base, headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.get(UI_EVENTS) as response,
    ):
        yield OpenStream(response, _events(response))


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    kind = ""
    async for line in response.content:
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield Event(kind, json.loads(value))
