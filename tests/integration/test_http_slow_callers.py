"""Callers that are slow, or that send nothing: each has its time, and quick callers do not suffer from them."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import anyio
import pytest

from bcs.devtools.servers.embedded import free_port
from tests.support.service import DEFINE, Orchestrator, RunningService, serve, service_in_thread
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

PLACES = 50
SLOW_CALLERS = 80
QUICK_CALLS = 40
HEAD_SECONDS = 0.1
BODY_SECONDS = 0.1
IDLE_SECONDS = 1.0
# Of the loop that checks the times, and of this machine, which may be busy.
LATE_SECONDS = 1.5
# Longer than the service waits for a body.
FULL_SECONDS = 8.0
BODY = json.dumps({"batch_id": "slow", "requested_pipeline": "ai_feedback", "correlation_id": "slow"}).encode()
NOWHERE = {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1", "shutdown_seconds": 2.0}

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def head(length: int, path: str = DEFINE) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: bcs\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


@pytest.fixture(scope="module")
def patient_service() -> Iterator[RunningService]:
    """A service with few places, which waits for a body longer than these tests take."""
    with service_in_thread(
        **NOWHERE, http_max_concurrent_requests=PLACES, http_body_seconds=20.0, http_max_held_bytes=200_000
    ) as running:
        yield running


@pytest.fixture(scope="module")
def hasty_service() -> Iterator[RunningService]:
    """A service that waits for callers only a moment."""
    with service_in_thread(
        **NOWHERE, http_head_seconds=HEAD_SECONDS, http_body_seconds=BODY_SECONDS, http_idle_seconds=IDLE_SECONDS
    ) as running:
        yield running


@asynccontextmanager
async def connection(service: RunningService, *sent: bytes) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection(*service.service.address)
    try:
        writer.writelines(sent)
        yield reader, writer
    finally:
        writer.close()


async def bodies_awaited(orchestrator: Orchestrator) -> float:
    return await orchestrator.metric("bcs_http_bodies_awaited") or 0


async def test_bodies_that_never_end_take_no_place_from_quick_callers(patient_service: RunningService) -> None:
    async with AsyncExitStack() as stack:
        orchestrator = await stack.enter_async_context(Orchestrator(patient_service.base))
        for _ in range(SLOW_CALLERS):
            await stack.enter_async_context(connection(patient_service, head(len(BODY)) + BODY[:1]))

        async def all_awaited() -> bool:
            return await bodies_awaited(orchestrator) == SLOW_CALLERS

        await wait_until(all_awaited)
        answers = await asyncio.gather(*(orchestrator.define("quick") for _ in range(QUICK_CALLS)))
        assert Counter(answer.status for answer in answers) == {200: QUICK_CALLS}
        assert await bodies_awaited(orchestrator) == SLOW_CALLERS, "the slow callers are still served"


async def test_a_body_that_comes_late_gets_a_408_and_its_connection_is_closed(hasty_service: RunningService) -> None:
    began, watch = monotonic(), Stopwatch()
    async with connection(hasty_service, head(len(BODY)) + BODY[:-1]) as (reader, _):
        answer = await answer_on(reader)
        assert monotonic() - began >= BODY_SECONDS
        assert watch.seconds < BODY_SECONDS + LATE_SECONDS
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert b"\r\nRetry-After: " in answer
    assert b"urn:bcs:problem:body-too-late" in answer


@pytest.mark.parametrize("gap_seconds", [0.0, HEAD_SECONDS / 8])
async def test_a_head_that_comes_late_gets_a_408(hasty_service: RunningService, gap_seconds: float) -> None:
    """The time is that of the whole head: each further byte does not begin it anew."""
    began, watch = monotonic(), Stopwatch()
    async with connection(hasty_service) as (reader, writer), anyio.create_task_group() as group:

        async def drip() -> None:
            for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 10_000:
                writer.write(bytes([byte]))
                # A caller that is slow to send.
                await anyio.sleep(gap_seconds)

        if gap_seconds:
            group.start_soon(drip)
        else:
            writer.write(b"GET /healthz HTTP/1.1\r\n")
        answer = await all_of(reader)
        assert monotonic() - began >= HEAD_SECONDS
        assert watch.seconds < HEAD_SECONDS + LATE_SECONDS
        group.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.0 408 ")
    assert b"urn:bcs:problem:head-too-late" in answer


async def test_a_connection_without_a_request_is_closed_without_an_answer(hasty_service: RunningService) -> None:
    began, watch = monotonic(), Stopwatch()
    async with connection(hasty_service) as (reader, _):
        assert await all_of(reader) == b""
        assert monotonic() - began >= HEAD_SECONDS
        assert watch.seconds < HEAD_SECONDS + LATE_SECONDS


async def test_an_idle_connection_is_closed_after_its_time(hasty_service: RunningService) -> None:
    async with connection(hasty_service, b"GET /readyz HTTP/1.1\r\nHost: bcs\r\n\r\n") as (reader, writer):
        assert b" 200 " in await answer_on(reader)
        await anyio.sleep(HEAD_SECONDS)  # less than the time of an idle connection, and the next request has its own
        began, watch = monotonic(), Stopwatch()
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: bcs\r\n\r\n")
        assert b" 200 " in await answer_on(reader)
        assert await all_of(reader) == b""
        assert monotonic() - began >= IDLE_SECONDS * 0.9  # its clock goes by steps
        assert watch.seconds < IDLE_SECONDS + LATE_SECONDS


async def test_the_bytes_of_all_bodies_are_bounded_and_the_slowest_leaves(patient_service: RunningService) -> None:
    large = b" " * 90_000
    async with AsyncExitStack() as stack:
        orchestrator = await stack.enter_async_context(Orchestrator(patient_service.base))
        readers = []
        for _ in range(3):
            already = await held_bytes(orchestrator)
            reader, _ = await stack.enter_async_context(connection(patient_service, head(100_000) + large))
            readers.append(reader)

            async def is_held(already: float = already) -> bool:
                return await held_bytes(orchestrator) > already or len(readers) == 3

            await wait_until(is_held)
        assert (await answer_on(readers[0])).startswith(b"HTTP/1.1 503 "), "the first was the slowest"
        assert (await orchestrator.define("quick")).status == 200
        assert await held_bytes(orchestrator) == 2 * len(large)


async def test_what_a_caller_sends_ahead_of_its_answers_is_bounded(patient_service: RunningService) -> None:
    ahead = b"GET /readyz HTTP/1.1\r\nHost: bcs\r\nX: " + b"x" * 5_000 + b"\r\n\r\n"
    async with connection(patient_service, head(len(BODY)) + BODY, *[ahead] * 40) as (reader, writer):
        answers = await all_of(reader)
        writer.close()
    assert 0 < answers.count(b"HTTP/1.1 200 ") < 41


async def test_a_head_that_is_too_large_as_a_whole_gets_a_431(patient_service: RunningService) -> None:
    headers = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 8_000) for number in range(20))
    async with connection(patient_service, b"GET /readyz HTTP/1.1\r\nHost: bcs\r\n" + headers) as (reader, _):
        answer = await all_of(reader)
    assert answer.startswith(b"HTTP/1.0 431 ")


@pytest.mark.release
@pytest.mark.serial
async def test_six_hundred_endless_bodies_harm_no_quick_caller(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    statuses: Counter[int] = Counter()
    probes: list[float] = []
    with serve(tmp_path, f"redis://{nowhere}", nowhere, BCS_USE_MOCK_REPOSITORY=True, forked=False) as process:
        await process.answers()
        port = int(process.environment["BCS_HTTP_PORT"])
        slow = SlowCallers(port)
        async with anyio.create_task_group() as group, Orchestrator(process.base) as orchestrator:
            for _ in range(600):
                group.start_soon(slow.call)

            async def many_awaited() -> bool:
                return await bodies_awaited(orchestrator) > 550

            await wait_until(many_awaited)
            until = monotonic() + FULL_SECONDS
            while monotonic() < until:
                for answer in await asyncio.gather(*(orchestrator.define("quick") for _ in range(5))):
                    statuses[answer.status] += 1
                began = monotonic()
                assert (await orchestrator.get("/healthz")).status == 200
                probes.append(monotonic() - began)
            assert await bodies_awaited(orchestrator) > 300
            group.cancel_scope.cancel()
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
    assert slow.statuses.keys() == {408}
    assert slow.statuses[408] >= 600, "each of them was told so"
    assert statuses[200] >= 0.95 * statuses.total() > 0, statuses
    assert sorted(probes)[len(probes) * 95 // 100] < 0.25


class SlowCallers:
    """Callers whose bodies never end: they send a byte now and then, and come again once they are refused."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.statuses: Counter[int] = Counter()

    async def call(self) -> None:
        """Call again and again, until cancelled."""
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(head(100_000))
                answer = asyncio.ensure_future(reader.readline())
                while not answer.done():
                    writer.write(b" " * 100)
                    await asyncio.wait([answer], timeout=0.25)
                self.statuses[int(answer.result().split()[1])] += 1
            finally:
                writer.close()


async def held_bytes(orchestrator: Orchestrator) -> float:
    return await orchestrator.metric("bcs_http_held_bytes") or 0


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection is closed, by whatever means."""
    received = b""
    with anyio.fail_after(30):
        try:
            while more := await reader.read(65_536):
                received += more
        except ConnectionResetError:
            pass
    return received


async def answer_on(reader: asyncio.StreamReader) -> bytes:
    with anyio.fail_after(30):
        head = await reader.readuntil(b"\r\n\r\n")
        [length] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: ")]
        return head + await reader.readexactly(int(length.partition(b": ")[2]))
