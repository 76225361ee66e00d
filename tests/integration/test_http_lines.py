"""Answers whose lines are sent while they are made: to callers that read, that are slow, and that leave."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import anyio
import pytest
from aiohttp import web
from pydantic_core import to_json

from bcs.config.loading import load_settings
from bcs.errors import StoreUnavailable
from bcs.http.bodies import Bodies
from bcs.http.callers import Callers
from bcs.http.connection import Connection
from bcs.http.deadlines import task_deadlines
from bcs.http.guard import RequestGuard
from bcs.http.lines import LinesResponse
from bcs.observability.telemetry import Telemetry
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

SEND_SECONDS = DEADLINE_SECONDS = 0.3
BODY = b'{"padding":"%b"}' % (b"x" * 10_000)  # larger than bodies that do not count
Step = bytes | Exception | Callable[[], Awaitable[bytes]]


class ScriptedLines:
    """Lines that are made step by step, as a test says."""

    def __init__(self, *steps: Step) -> None:
        self.steps = deque(steps)
        self.begun = 0
        self.cancelled = False

    @property
    def ended(self) -> bool:
        return not self.steps

    async def more(self) -> bytes:
        self.begun += 1
        step = self.steps.popleft()
        if isinstance(step, Exception):
            raise step
        try:
            return step if isinstance(step, bytes) else await step()
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def failed(self, problem: dict[str, Any]) -> bytes:
        return to_json({"problem": problem}) + b"\n"


class Server:
    """Answers each request with the lines of the test, on connections as the service has them."""

    def __init__(self, at_once: bool, **settings: object) -> None:
        limits = {"request_deadline_seconds": DEADLINE_SECONDS, "http_send_seconds": SEND_SECONDS}
        self.settings = load_settings(**{**limits, **settings})
        self.telemetry = Telemetry()
        self.callers = Callers(self.settings, self.telemetry, most=100)
        deadlines = task_deadlines(self.callers.clock, self.settings.request_deadline_seconds)
        bodies = Bodies(self.callers.bodies, self.callers.held, self.settings.http_max_body_bytes)
        self.guard = RequestGuard(
            self.settings, self.telemetry, bodies, deadlines, rates=None, crowded=self.callers.crowded
        )
        self.lines = ScriptedLines()
        self.handler = self.guard.wrap(self._answer, "/lines", reads_body=True)
        # The loop of aiohttp answers what has no exact path.
        self.exact = {("POST", "/lines"): self.handler} if at_once else {}
        self.port = 0

    async def _answer(self, _: web.Request) -> web.StreamResponse:
        response = LinesResponse(self.lines, {"X-Name": "value"})
        await response.begin()
        return response

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_post("/lines", self.handler)
        runner = web.AppRunner(application, handle_signals=False)
        await runner.setup()
        loop = asyncio.get_running_loop()

        def connection() -> Connection:
            return Connection(
                runner.server,
                exact=self.exact,
                unrouted=self.handler,
                settings=self.settings,
                callers=self.callers,
                network="127.0.0.1",
                crowded=None,
                loop=loop,
                logger=logging.getLogger("test"),
                access_log=None,
            )

        server = await loop.create_server(connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with anyio.create_task_group() as group:
            group.start_soon(self.callers.clock.run)
            yield
            group.cancel_scope.cancel()
        server.close()
        await runner.cleanup()

    def answered(self, status: int) -> float:
        labels = {"method": "POST", "endpoint": "/lines", "status_code": str(int(status))}
        return self.telemetry.registry.get_sample_value("bcs_http_requests_total", labels) or 0.0

    @property
    def idle(self) -> bool:
        """True if nothing is held and nothing is in flight."""
        return not (self.callers.held.total or self.guard._in_flight or self.guard._concurrent or self.guard._streams)


@pytest.fixture(
    params=[
        pytest.param(True, id="at once"),
        pytest.param(False, id="by the loop of aiohttp", marks=pytest.mark.release),
    ]
)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    server = Server(request.param)
    async with server.listening():
        yield server


@asynccontextmanager
async def asked(server: Server, *steps: Step) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    server.lines = ScriptedLines(*steps)
    # A small window, so that the operating system takes little for a caller that does not read.
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    head = f"POST /lines HTTP/1.1\r\nHost: bcs\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    writer.write(head.encode() + BODY)
    try:
        yield reader, writer
    finally:
        writer.close()


async def chunk(reader: asyncio.StreamReader) -> bytes:
    """The next chunk of the body; empty at its end."""
    length = int(await reader.readline(), 16)
    data = await reader.readexactly(length)
    assert await reader.readexactly(2) == b"\r\n"
    return data


async def answer_of(reader: asyncio.StreamReader) -> tuple[bytes, list[Any]]:
    """The head, and the documents in the lines; the body has an end."""
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    while more := await chunk(reader):
        body += more
    assert body.endswith(b"\n")
    return head, [json.loads(line) for line in body.splitlines()]


async def test_lines_leave_before_the_next_ones_are_made(server: Server) -> None:
    made = anyio.Event()

    async def later() -> bytes:
        await made.wait()
        return b"3\n"

    async with asked(server, b"1\n", b"2\n", later, b"4\n") as (reader, _):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"Content-Type: application/x-ndjson\r\n" in head
        assert b"X-Name: value\r\n" in head
        assert [await chunk(reader), await chunk(reader)] == [b"1\n", b"2\n"]
        assert server.callers.held.total == len(BODY)
        assert server.answered(200) == 0
        made.set()
        assert [await chunk(reader), await chunk(reader), await chunk(reader)] == [b"3\n", b"4\n", b""]
        await wait_until(lambda: server.idle)
        assert server.answered(200) == 1


async def test_the_connection_takes_a_further_request(server: Server) -> None:
    async with asked(server, b"1\n", b"2\n") as (reader, writer):
        assert (await answer_of(reader))[1] == [1, 2]
        server.lines = ScriptedLines(b"3\n")
        head = b"POST /lines HTTP/1.1\r\nHost: bcs\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        writer.write(head)
        assert (await answer_of(reader))[1] == [3]


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (StoreUnavailable("redis", "gone"), "unavailable", HTTPStatus.SERVICE_UNAVAILABLE),
        (RuntimeError("a fault"), "internal", HTTPStatus.INTERNAL_SERVER_ERROR),
        (TimeoutError(), "internal", HTTPStatus.INTERNAL_SERVER_ERROR),
    ],
)
async def test_a_failure_meanwhile_is_the_last_line(
    server: Server, error: Exception, kind: str, status: HTTPStatus
) -> None:
    async with asked(server, b"1\n", error, b"2\n") as (reader, _):
        _, [first, last] = await answer_of(reader)
    assert first == 1
    assert last["problem"]["type"] == f"urn:bcs:problem:{kind}"
    assert last["problem"]["status"] == status
    assert last["problem"]["correlation_id"]
    await wait_until(lambda: server.idle)
    assert server.answered(status) == 1


async def test_a_failure_at_the_beginning_is_a_problem(server: Server) -> None:
    async with asked(server, StoreUnavailable("redis", "gone")) as (reader, _):
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
    await wait_until(lambda: server.idle)


async def test_lines_that_take_too_long_end_the_answer(server: Server) -> None:
    async with asked(server, b"1\n", _never, b"2\n") as (reader, _):
        _, [_, last] = await answer_of(reader)
    assert last["problem"]["type"] == "urn:bcs:problem:deadline"
    assert server.lines.cancelled
    await wait_until(lambda: server.idle)


async def _never() -> bytes:
    await anyio.sleep_forever()
    raise AssertionError


async def test_a_stop_ends_the_answer_with_a_line_that_says_so(server: Server) -> None:
    made = anyio.Event()

    async def later() -> bytes:
        await made.wait()
        return b"2\n"

    async with asked(server, b"1\n", later, b"3\n") as (reader, _):
        await wait_until(lambda: server.lines.begun == 2)
        server.guard.end_streams()
        made.set()
        _, [*lines, last] = await answer_of(reader)
    assert lines == [1, 2]
    assert last["problem"]["type"] == "urn:bcs:problem:draining"
    with anyio.fail_after(20):
        await server.guard.idle()


async def test_a_caller_that_leaves_ends_the_work(server: Server) -> None:
    started = anyio.Event()

    async def later() -> bytes:
        started.set()
        return await _never()

    async with asked(server, b"1\n", later) as (_, writer):
        await started.wait()
        writer.transport.abort()
        await wait_until(lambda: server.lines.cancelled)
    await wait_until(lambda: server.idle)
    assert server.answered(499) == 1


async def test_a_slow_reader_costs_a_bounded_size_and_is_ended(server: Server) -> None:
    lines = [b"%b\n" % (b"1" * 1_000_000)] * 50
    async with asked(server, *lines) as (reader, _):
        await reader.readuntil(b"\r\n\r\n")
        # The rest is not read, and the operating system takes only so much.
        await wait_until(lambda: server.answered(499) == 1)
        assert server.lines.begun < 20
    await wait_until(lambda: server.idle)


async def test_only_so_many_are_sent_at_a_time() -> None:
    server = Server(at_once=True, http_max_concurrent_requests=1, request_deadline_seconds=20.0)

    async with server.listening(), asked(server, b"1\n", b"%b\n" % (b"1" * 20_000_000), b"2\n"):
        # It waits for its caller, and does not count as a request at work.
        await wait_until(lambda: server.guard._streams == 1 and not server.guard._concurrent)
        async with asked(server, b"1\n") as (reader, _):
            assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
