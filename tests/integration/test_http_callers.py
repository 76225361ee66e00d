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
        with anyio.fail_after(20):
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
    "a chunk of no size": (head(CHUNKED) + SECRET + b"\r\nabc\r\n0\r\n\r\n",),
    "a chunk of negative size": (head(CHUNKED) + b"-3\r\nabc\r\n0\r\n\r\n",),
    "a chunk of endless size": (head(CHUNKED) + b"f" * 20 + b"\r\nabc\r\n0\r\n\r\n",),
    "a chunk with NUL": (head(CHUNKED) + b"3;\0\r\nabc\r\n0\r\n\r\n",),
    "a later chunk of no size": (head(CHUNKED), b"3\r\nabc\r\n", b"zz\r\nabc\r\n0\r\n\r\n"),
    "a later chunk that is too long": (head(CHUNKED), b"3\r\nabcdef\r\n0\r\n\r\n"),
    "a chunk after its expectation": (head(CHUNKED, "Expect: 100-continue") + SECRET + b"\r\n",),
    "a later trailer that is too long": (head(CHUNKED), b"0\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"),
    "a trailer without a colon": (head(CHUNKED) + b"0\r\n" + SECRET + b"\r\n\r\n",),
    "two lengths": (head(LENGTH, "Content-Length: 5") + BODY,),
    "a list of lengths": (head(f"{LENGTH}, {len(BODY)}") + BODY,),
    "a length that is a word": (head(f"Content-Length: {SECRET.decode()}"),),
    "a negative length": (head("Content-Length: -1"),),
    "a length with a sign": (head(f"Content-Length: +{len(BODY)}") + BODY,),
    "a length without end": (head(f"Content-Length: {'9' * 30}") + BODY,),
    "a length and chunks": (head(LENGTH, CHUNKED) + b"0\r\n\r\n",),
    "chunks and a length": (head(CHUNKED, LENGTH) + b"0\r\n\r\n",),
    "a body without a length": (head() + BODY,),
    "an unknown transfer encoding": (head("Transfer-Encoding: gzip") + BODY,),
    "a transfer encoding after chunks": (head(CHUNKED + ", identity") + BODY,),
    "no HTTP at all": (SECRET + b"\r\n\r\n",),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET,),
    "SSH": (b"SSH-2.0-" + SECRET + b"\r\n",),
    "Redis": (b"*1\r\n$10\r\n" + SECRET + b"\r\n",),
    "the PROXY protocol": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + head(LENGTH) + BODY,),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
    "an unknown version": (b"GET /" + SECRET + b" HTTP/1.2\r\nHost: bcs\r\n\r\n",),
    "an unknown protocol": (b"GET / " + SECRET + b"/1.1\r\nHost: bcs\r\n\r\n",),
    "an unknown method": (b"PUPIL / HTTP/1.1\r\nHost: bcs\r\n\r\n",),
    "no target": (b"GET  HTTP/1.1\r\nHost: bcs\r\n\r\n",),
    "a target without a slash": (b"GET " + SECRET + b" HTTP/1.1\r\nHost: bcs\r\n\r\n",),
    "a target with a space": (b"GET /a " + SECRET + b" HTTP/1.1\r\nHost: bcs\r\n\r\n",),
    "a target with NUL": (b"GET /\0" + SECRET + b" HTTP/1.1\r\nHost: bcs\r\n\r\n",),
    "a target that is not ASCII": (b"GET /\xff" + SECRET + b" HTTP/1.1\r\nHost: bcs\r\n\r\n",),
    "a host without an end": (b"GET http://[" + SECRET + b"/ HTTP/1.1\r\nHost: bcs\r\n\r\n",),
    "no host": (b"GET /" + SECRET + b" HTTP/1.1\r\n\r\n",),
    "two hosts": (head(f"Host: {SECRET.decode()}"),),
    "a header without a colon": (head(SECRET.decode()),),
    "a header without a name": (head(f": {SECRET.decode()}"),),
    "a space before the colon": (head(f"{SECRET.decode()} : x"),),
    "a header over two lines": (head(f"X: a\r\n {SECRET.decode()}"),),
    "a header with NUL": (head(f"X: {SECRET.decode()}\0"),),
    "a header with a bare CR": (head(f"X: {SECRET.decode()}\r"),),
    "bare line feeds": (b"GET /" + SECRET + b" HTTP/1.1\nHost: bcs\n\n",),
    "a name that is not ASCII": (head(f"Ä{SECRET.decode()}: x"),),
    "too many headers": (head(*(f"X-{number}: {SECRET.decode()}" for number in range(200))),),
}  # fmt: skip
# In HTTP/1.0 this header says nothing, so there is no body.
NO_BODY = {
    "chunks in HTTP/1.0": (head(CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0") + b"3\r\nabc\r\n0\r\n\r\n",),
}
TOO_LARGE = {
    "a header": (head(LENGTH, f"X: {SECRET.decode()}{'a' * 20_000}") + BODY,),
    "a name": (head(f"{SECRET.decode()}{'a' * 20_000}: x"),),
    "a target": (head(path=f"/{SECRET.decode()}{'a' * 20_000}"),),
    "a trailer": (head(CHUNKED) + b"0\r\nX: " + SECRET + b"a" * 20_000 + b"\r\n\r\n",),
}
NO_PATH = {
    "all of the server": (b"OPTIONS * HTTP/1.1\r\nHost: bcs\r\n\r\n",),
    "a tunnel": (b"CONNECT " + SECRET + b":443 HTTP/1.1\r\nHost: bcs\r\n\r\n",),
    "a tunnel to a path": (b"CONNECT /" + SECRET + b" HTTP/1.1\r\nHost: bcs\r\n\r\n",),
}
BROKEN = [
    pytest.param(parts, status, kind, id=f"{status}: {name}")
    for status, kind, cases in ((400, "unreadable-request", UNREADABLE), (400, "invalid-request", NO_BODY),
                                (431, "head-too-large", TOO_LARGE), (404, "not-found", NO_PATH))
    for name, parts in cases.items()
]  # fmt: skip


@pytest.mark.usefixtures("counts_nothing_as_ours")
@pytest.mark.parametrize(("parts", "status", "kind"), BROKEN)
async def test_a_request_that_is_broken_gets_a_problem_that_repeats_nothing(
    service: RunningService, parts: tuple[bytes, ...], status: int, kind: str
) -> None:
    answered, head_of_answer, body = await answer_to(service, *parts)
    assert answered == status
    assert b"\r\nContent-Type: application/problem+json\r\n" in head_of_answer
    document = json.loads(body)
    assert (document["type"], document["status"]) == (f"urn:bcs:problem:{kind}", status)
    assert f"\r\nX-Correlation-ID: {document['correlation_id']}\r\n".encode() in head_of_answer
    assert SECRET not in (head_of_answer + body).lower()


@pytest.mark.parametrize("protocol", ["websocket", "h2c", SECRET.decode()])
async def test_an_upgrade_is_ignored_and_the_answer_ends_the_connection(service: RunningService, protocol: str) -> None:
    """aiohttp would drop the second request without an answer."""
    request = head("Connection: upgrade", f"Upgrade: {protocol}", method="GET", path="/readyz")
    async with connection(service) as (reader, writer):
        writer.write(request * 2)
        with anyio.fail_after(20):
            answers = await reader.read()
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answers
    assert answers.count(b"HTTP/1.1") == 1


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
