"""Callers' errors with a body or a connection are a 400, or no answer without a caller; never a 500."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.support.service import DEFINE, Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

SECRET = b"pupil-4711"
BODY = json.dumps({"batch_id": "b", "requested_pipeline": "ai_feedback", "correlation_id": SECRET.decode()}).encode()
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
BOMB = gzip.compress(b" " * 50_000_000)


@pytest.fixture(scope="module")
def service(own_service: RunningService) -> RunningService:
    return own_service


@pytest.fixture(scope="module")
def service_settings() -> dict[str, object]:
    return {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1"}


def head(*headers: str, method: str = "POST", path: str = DEFINE) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: bcs", "Content-Type: application/json", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


@asynccontextmanager
async def connection(service: RunningService) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*service.service.address)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer_to(service: RunningService, *parts: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer; each part is sent only when the service has taken up the one before."""
    async with connection(service) as (reader, writer), Orchestrator(service.base) as orchestrator:
        for number, part in enumerate(parts):
            if number:
                await wait_until(lambda: in_flight(orchestrator, 2))
            writer.write(part)
        with anyio.fail_after(3):
            answered = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readuntil(b"}\n")
    return int(answered.split(b" ")[1]), answered, body


async def in_flight(orchestrator: Orchestrator, count: int) -> bool:
    """Whether so many requests are being answered, this question among them."""
    return await orchestrator.metric("bcs_http_requests_in_flight") == count


async def faults(orchestrator: Orchestrator) -> float:
    """How many requests were counted as failures of the service."""
    return sum(
        value
        for name, labels, value in await orchestrator.samples()
        if name == "bcs_http_requests_total" and labels["status_code"].startswith("5")
    )


@pytest.fixture
async def counts_nothing_as_ours(orchestrator: Orchestrator, caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Whatever the test does, no request counts as failed, and nothing is logged as an error."""
    before = await faults(orchestrator)
    yield
    assert await faults(orchestrator) == before
    assert [record.message for record in caplog.records if record.levelname == "ERROR" and "bcs" in record.name] == []


UNREADABLE: dict[str, tuple[bytes, ...]] = {
    "not gzip": (head(LENGTH, "Content-Encoding: gzip") + BODY,),
    "not deflate": (head(LENGTH, "Content-Encoding: deflate") + BODY,),
    "an encoding that is not installed": (head(LENGTH, "Content-Encoding: br") + BODY,),
    "more behind the gzip": (head(f"Content-Length: {len(gzip.compress(BODY)) + 2}", "Content-Encoding: gzip"),
                             gzip.compress(BODY) + b"xx"),
    "a chunk of no size": (head(CHUNKED) + b"zz\r\nabc\r\n0\r\n\r\n",),
    "a later chunk of no size": (head(CHUNKED), b"3\r\nabc\r\n", b"zz\r\nabc\r\n0\r\n\r\n"),
    "a later chunk that is too long": (head(CHUNKED), b"3\r\nabcdef\r\n0\r\n\r\n"),
    "a trailer that is too long": (head(CHUNKED), b"0\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"),
    "two lengths": (head(LENGTH, "Content-Length: 5") + BODY,),
    "a length and chunks": (head(LENGTH, CHUNKED) + b"0\r\n\r\n",),
    "an unknown transfer encoding": (head("Transfer-Encoding: gzip") + BODY,),
    "a header that is too long": (head(LENGTH, f"X: {'a' * 20_000}") + BODY,),
    "no HTTP at all": (SECRET + b"\r\n\r\n",),
}  # fmt: skip


@pytest.mark.usefixtures("counts_nothing_as_ours")
@pytest.mark.parametrize("parts", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_request_that_cannot_be_read_gets_a_400(service: RunningService, parts: tuple[bytes, ...]) -> None:
    status, answered, body = await answer_to(service, *parts)
    assert status == 400
    assert b"\r\nContent-Type: application/problem+json\r\n" in answered
    assert f"\r\nX-Correlation-ID: {json.loads(body)['correlation_id']}\r\n".encode() in answered
    assert SECRET not in body


@pytest.mark.usefixtures("counts_nothing_as_ours")
async def test_a_body_that_grows_when_it_is_decompressed_is_too_large(service: RunningService) -> None:
    status, _, _ = await answer_to(service, head(f"Content-Length: {len(BOMB)}", "Content-Encoding: gzip") + BOMB)
    assert status == 413


@pytest.mark.usefixtures("counts_nothing_as_ours")
@pytest.mark.parametrize("path", [DEFINE, "/nowhere"])
async def test_an_expectation_that_bcs_does_not_know_gets_a_417(service: RunningService, path: str) -> None:
    status, answered, body = await answer_to(service, head(LENGTH, "Expect: weird", path=path) + BODY)
    assert status == json.loads(body)["status"] == 417
    assert b"\r\nContent-Type: application/problem+json\r\n" in answered


async def test_a_caller_that_expects_a_100_gets_it_and_its_answer(service: RunningService) -> None:
    async with connection(service) as (reader, writer):
        writer.write(head(LENGTH, "Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


LEFT = {
    "a length": head(LENGTH) + BODY[:5],
    "chunks": head(CHUNKED) + b"5\r\nabc",
    "gzip": head(LENGTH, "Content-Encoding: gzip") + gzip.compress(BODY)[:12],
}


@pytest.mark.usefixtures("counts_nothing_as_ours")
@pytest.mark.parametrize("how", ["closed", "half closed", "reset"])
@pytest.mark.parametrize("sent", LEFT.values(), ids=LEFT.keys())
async def test_a_caller_that_leaves_in_its_body_counts_as_499(
    service: RunningService, orchestrator: Orchestrator, sent: bytes, how: str
) -> None:
    labels = {"method": "POST", "endpoint": DEFINE, "status_code": "499"}
    before = await orchestrator.metric("bcs_http_requests_total", **labels) or 0
    async with connection(service) as (reader, writer):
        writer.write(sent)
        await wait_until(lambda: in_flight(orchestrator, 2))
        if how == "half closed":
            writer.write_eof()
            assert await reader.read() == b""
        elif how == "reset":
            caller: socket.socket = writer.get_extra_info("socket")
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await wait_until(lambda: is_counted(orchestrator, before + 1, **labels))


async def is_counted(orchestrator: Orchestrator, count: float, **labels: str) -> bool:
    return await orchestrator.metric("bcs_http_requests_total", **labels) == count
