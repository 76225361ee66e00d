"""Snapshots for all open pages: one for each interval, made once, and only while a page is open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import anyio
import structlog
from aiohttp_sse import EventSourceResponse

from bcs.supervision import describe

log = structlog.stdlib.get_logger("bcs.http", actor="http")

HELLO, SNAPSHOT, END = "hello", "snapshot", "end"
"""The types of the events: who the caller is, the state of the service, and that the stream ends."""

INTERVAL_SECONDS: Final = 1.0


class LiveFeed:
    """Makes snapshots, and wakes the streams that wait for the next one.

    A stream sends the newest snapshot and forgets it, so a slow reader misses snapshots and collects none.

    :param make: makes a snapshot as JSON; it must not wait.
    :param most: the maximum number of open streams.
    :param clock: monotonic seconds.
    """

    def __init__(self, make: Callable[[], str], *, most: int, clock: Callable[[], float]) -> None:
        self._make = make
        self._most = most
        self._clock = clock
        self._running = False
        self._open = 0
        self._number = 0
        self._made_at: float | None = None
        self._newest = ""
        self._news = anyio.Event()

    @property
    def open_streams(self) -> int:
        """The number of open streams."""
        return self._open

    @property
    def full(self) -> bool:
        """True if no further stream may be opened."""
        return self._open >= self._most

    async def run(self) -> None:
        """Make snapshots until the task is cancelled; then all streams end."""
        self._running, self._made_at = True, None
        try:
            while True:
                if self._open:
                    self._renew()
                await anyio.sleep(INTERVAL_SECONDS)
        finally:
            self.end()

    def end(self) -> None:
        """End all streams now. Those that are opened later end at once, until `run` is called again."""
        self._running = False
        self._wake()

    @contextmanager
    def opened(self) -> Iterator[Callable[[], Awaitable[str | None]]]:
        """Open a stream: a function that waits for the next snapshot, and returns None at the end."""
        seen = 0

        async def following() -> str | None:
            nonlocal seen
            while self._running and seen == self._number:
                await self._news.wait()
            seen = self._number
            return self._newest if self._running else None

        self._open += 1
        try:
            if self._running and (self._made_at is None or self._clock() - self._made_at >= INTERVAL_SECONDS):
                self._renew()  # a page that has just been opened does not wait
            yield following
        finally:
            self._open -= 1

    def _renew(self) -> None:
        try:
            self._newest = self._make()
        except Exception as error:
            log.exception("ui_snapshot_failed", error=describe(error), kind=type(error).__name__)
            return
        self._made_at = self._clock()
        self._number += 1
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()


class LiveStream(EventSourceResponse):
    """A stream of snapshots as server-sent events.

    The events are the body of the response: aiohttp asks for it once the handler has returned. So a stream takes no
    place among the requests in flight, has no deadline, and counts in the metrics as a request that was answered.

    :param hello: the data of the first event.
    :param admitted: True while the caller may read; asked before each snapshot, because a token may be removed.
    :param send_seconds: how long the caller may take to read an event; then the connection is closed.
    """

    def __init__(self, feed: LiveFeed, *, hello: str, admitted: Callable[[], bool], send_seconds: float) -> None:
        super().__init__(headers={"X-Content-Type-Options": "nosniff"}, send_timeout=send_seconds)
        self._feed = feed
        self._hello = hello
        self._admitted = admitted

    async def write_eof(self, data: bytes = b"") -> None:
        """See `StreamResponse`: send the events until the feed or the connection ends."""
        try:
            # The caller has left, or was too slow and was cut off by aiohttp-sse.
            with suppress(ConnectionError, TimeoutError):
                await self._send_events()
        finally:
            self.stop_streaming()
        await super().write_eof(data)

    async def _send_events(self) -> None:
        if not self._feed.full:
            with self._feed.opened() as following:
                await self.send(self._hello, event=HELLO)
                while (snapshot := await following()) is not None and self._admitted():
                    await self.send(snapshot, event=SNAPSHOT)
        await self.send("{}", event=END)
