"""Requests that are answered without the loop of aiohttp: which they are, with the same bytes, and in their order."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from bcs.http.connection import Connection
from tests.support.held_answers import HeldAnswers
from tests.support.service import DEFINE, Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def held() -> HeldAnswers:
    return HeldAnswers()


@pytest.fixture
def service(held: HeldAnswers) -> Iterator[RunningService]:
    with service_in_thread(held.reach, use_mock_repository=True, kafka_bootstrap_servers="127.0.0.1:1") as running:
        yield running


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the requests that were answered at once."""
    paths: list[str] = []
    answer = Connection._answer

    async def noted(self: Connection, request: Any, handler: Any) -> None:
        paths.append(request.path)
        await answer(self, request, handler)

    monkeypatch.setattr(Connection, "_answer", noted)
    return paths


@asynccontextmanager
async def connected(service: RunningService) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(*service.service.address)
    try:
        yield reader, writer
    finally:
        writer.close()


def define(batch: str = "b", *more: str, version: str = "1.1", **changes: object) -> bytes:
    fields = {"batch_id": batch, "requested_pipeline": "ai_feedback", "correlation_id": "c", **changes}
    body = json.dumps(fields).encode()
    lines = [
        f"POST {DEFINE} HTTP/{version}",
        "Host: bcs",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def answer_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of the next answer, without the date and new ids."""
    with anyio.fail_after(20):
        head = await reader.readuntil(b"\r\n\r\n")
        [length] = re.findall(rb"(?i)content-length: (\d+)", head)
        return re.sub(rb"Date: .*?\r\n", b"", head), await reader.readexactly(int(length))


REQUESTS = {
    "an answer": define(),
    "a correlation id that needs quotes": define(correlation_id="ü %\r\nX-Injected: 1"),
    "an invalid field": define(batch=""),
    "an unknown pipeline": define(requested_pipeline="unknown"),
    "another type": define().replace(b"application/json", b"text/plain"),
    "a type with parameters": define().replace(b"application/json", b"application/json; charset=utf-8"),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_give_the_same_bytes(service: RunningService, at_once: list[str], name: str) -> None:
    # Without an id in the body, the header's is used; with neither, it is new for each request.
    request = REQUESTS[name].replace(b"Host: bcs\r\n", b"Host: bcs\r\nX-Correlation-ID: h\r\n")
    async with connected(service) as (reader, writer):
        writer.write(request)
        first = await answer_of(reader)
        assert at_once == [DEFINE]
        # Two requests in one packet are answered by the loop of aiohttp.
        writer.write(request * 2)
        assert await answer_of(reader) == await answer_of(reader) == first
        assert at_once == [DEFINE]
        writer.write(request)
        assert await answer_of(reader) == first


async def test_a_caller_who_is_quicker_than_the_end_of_an_answer_is_answered_at_once(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[str] = []
    second = asyncio.Event()
    answer = Connection._answer

    async def ends_slowly(self: Connection, request: Any, handler: Any) -> None:
        answered.append(request.path)
        if len(answered) == 2:
            second.set()
        await answer(self, request, handler)
        with anyio.move_on_after(2):
            await second.wait()

    monkeypatch.setattr(Connection, "_answer", ends_slowly)
    async with connected(service) as (reader, writer):
        for _ in range(2):
            writer.write(define())
            await answer_of(reader)
    assert answered == [DEFINE, DEFINE]


@pytest.mark.parametrize(
    ("request_bytes", "is_at_once", "stays_open"),
    [
        (define(), True, True),
        (define("b", "Connection: close"), True, False),
        (define(version="1.0"), False, False),
        (define("b", "Connection: keep-alive", version="1.0"), False, True),
        (define("b", "Expect: 200-ok"), False, True),
        (define().replace(DEFINE.encode(), DEFINE.encode() + b"?a=b"), False, True),
        (b"GET /readyz HTTP/1.1\r\nHost: bcs\r\n\r\n", True, True),
        (b"GET /metrics HTTP/1.1\r\nHost: bcs\r\n\r\n", True, True),
        (b"GET /nowhere HTTP/1.1\r\nHost: bcs\r\n\r\n", False, True),
    ],
)
async def test_a_connection_stays_open_as_its_request_says(
    service: RunningService, at_once: list[str], request_bytes: bytes, is_at_once: bool, stays_open: bool
) -> None:
    async with connected(service) as (reader, writer):
        writer.write(request_bytes)
        await answer_of(reader)
        assert bool(at_once) is is_at_once
        if stays_open:
            writer.write(define())
            head, _ = await answer_of(reader)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nConnection:" not in head
        else:
            with anyio.fail_after(20):
                assert await reader.read() == b""


async def test_the_head_of_a_page_is_answered_without_its_body(service: RunningService, at_once: list[str]) -> None:
    async with connected(service) as (reader, writer):
        writer.write(b"HEAD /readyz HTTP/1.1\r\nHost: bcs\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        writer.write(define())
        assert (await answer_of(reader))[0].startswith(b"HTTP/1.1 200 OK\r\n")
    # The loop of aiohttp answers the second request, too, if it comes before the loop has ended the first one.
    assert at_once in ([], [DEFINE])


@pytest.fixture
async def pruning(service: RunningService) -> str:
    """A batch whose answers prune a phase, so that they are held."""
    async with Orchestrator(service.base) as orchestrator:
        assert (await orchestrator.complete("held", "spellcheck")).status == 200
    return "held"


def in_flight(service: RunningService, count: int) -> bool:
    return service.service.telemetry.registry.get_sample_value("bcs_http_requests_in_flight") == count


@pytest.mark.parametrize("earlier", [0, 1], ids=["on a new connection", "on an idle connection"])
async def test_requests_that_come_before_the_answer_are_answered_after_it(
    service: RunningService, held: HeldAnswers, pruning: str, earlier: int
) -> None:
    async with connected(service) as (reader, writer):
        for _ in range(earlier):
            writer.write(define("earlier"))
            await answer_of(reader)
        writer.write(define(pruning))
        await wait_until(lambda: in_flight(service, 1))
        writer.write(define("second"))
        writer.write(define("third") + define("fourth")[:50])
        async with Orchestrator(service.base) as other:
            assert await other.to_run("b") == ["spellcheck", "ai_feedback"]
        service.call(held.let_go.set)
        answered = [json.loads((await answer_of(reader))[1])["batch_id"] for _ in range(3)]
        writer.write(define("fourth")[50:])
        answered.append(json.loads((await answer_of(reader))[1])["batch_id"])
        assert answered == [pruning, "second", "third", "fourth"]


async def test_a_request_that_comes_before_the_answer_is_answered_at_once_after_it(
    service: RunningService, held: HeldAnswers, pruning: str, at_once: list[str]
) -> None:
    async with connected(service) as (reader, writer):
        writer.write(define(pruning))
        await wait_until(lambda: in_flight(service, 1))
        writer.write(define("second"))
        async with Orchestrator(service.base) as other:  # its request is taken after the second one
            assert await other.to_run("b") == ["spellcheck", "ai_feedback"]
        at_once.clear()
        service.call(held.let_go.set)
        await answer_of(reader)
        await answer_of(reader)
        assert at_once == [DEFINE]


async def test_a_large_body_may_arrive_before_its_request_is_begun(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the loop of aiohttp finds out that the first answer has ended, more than one packet can arrive."""
    connections: list[Connection] = []
    made = Connection.connection_made

    def noted(self: Connection, transport: asyncio.BaseTransport) -> None:
        connections.append(self)
        made(self, transport)

    monkeypatch.setattr(Connection, "connection_made", noted)
    request = define("large", ignored=" " * 140_000)
    async with connected(service) as (reader, writer):
        writer.write(define("small"))
        await answer_of(reader)
        [connection] = connections

        def receive() -> None:
            for start in range(0, len(request), 70_000):
                connection.data_received(request[start : start + 70_000])

        service.call(receive)
        assert json.loads((await answer_of(reader))[1])["batch_id"] == "large"
        writer.write(define("last"))
        assert json.loads((await answer_of(reader))[1])["batch_id"] == "last"


async def test_a_caller_that_leaves_before_the_answer_leaves_nothing_behind(
    service: RunningService, held: HeldAnswers, pruning: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(service) as (_, writer):
        writer.write(define(pruning))
        await wait_until(lambda: in_flight(service, 1))
    registry = service.service.telemetry.registry
    await wait_until(lambda: registry.get_sample_value("bcs_http_connections") == 0)
    service.call(held.let_go.set)
    await wait_until(lambda: in_flight(service, 0))
    async with Orchestrator(service.base) as orchestrator:
        assert await orchestrator.to_run("b") == ["spellcheck", "ai_feedback"]
    assert not [record for record in caplog.records if record.name in {"asyncio", "bcs.http"}]


async def test_a_stop_waits_for_an_answer_that_has_begun(
    service: RunningService, held: HeldAnswers, pruning: str
) -> None:
    async with connected(service) as (reader, writer):
        writer.write(define(pruning))
        await wait_until(lambda: in_flight(service, 1))
        stop = service.service._stop
        assert stop is not None
        service.call(stop.set)
        service.call(held.let_go.set)
        assert (await answer_of(reader))[0].startswith(b"HTTP/1.1 200 OK\r\n")
        with anyio.fail_after(20):
            assert await reader.read() == b""
