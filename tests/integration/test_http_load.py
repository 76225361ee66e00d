"""Many requests at a time, slow ones, and broken ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.support.held_answers import HeldAnswers
from tests.support.service import DEFINE, Orchestrator, RunningService, service_in_thread
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

LIMIT = 4
DEADLINE_SECONDS = 5.0
BODY = json.dumps({"batch_id": "slow", "requested_pipeline": "ai_feedback", "correlation_id": "slow"}).encode()
HEAD = (
    f"POST {DEFINE} HTTP/1.1\r\nHost: bcs\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n"
    "Connection: close\r\n\r\n"
).encode()


@pytest.fixture
def held() -> HeldAnswers:
    return HeldAnswers()


@pytest.fixture
def narrow_service(held: HeldAnswers) -> Iterator[RunningService]:
    """One that takes few requests."""
    with service_in_thread(
        held.reach,
        use_mock_repository=True,
        kafka_bootstrap_servers="127.0.0.1:1",
        shutdown_seconds=2.0,
        http_max_concurrent_requests=LIMIT,
        retry_after_seconds=3,
    ) as running:
        yield running


@asynccontextmanager
async def connection(
    service: RunningService, *sent: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*service.service.address)
    try:
        writer.writelines(sent)
        await writer.drain()
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def status_of(reader: asyncio.StreamReader) -> int:
    return int((await reader.readline()).split()[1])


async def test_hundreds_of_requests_at_a_time_are_all_answered(service: RunningService) -> None:
    async with Orchestrator(service.base) as orchestrator:
        answers = await asyncio.gather(
            *(orchestrator.define(f"load-{number % 50}", correlation_id=f"request-{number}") for number in range(400)),
        )
    assert {answer.status for answer in answers} == {200}
    assert [answer.headers["X-Correlation-ID"] for answer in answers] == [f"request-{n}" for n in range(400)]
    assert [answer.json["batch_id"] for answer in answers] == [f"load-{n % 50}" for n in range(400)]


async def test_concurrent_reports_are_all_recorded(service: RunningService, batch: str) -> None:
    """No two say the same, so that each shows; those about one batch at a time are in test_archive_path.py."""
    phases = ["spellcheck", "nlp", "cj_assessment", "ai_feedback"]
    batches = [f"{batch}-{number}" for number in range(50)]
    async with Orchestrator(service.base) as orchestrator:
        answers = await asyncio.gather(*(orchestrator.complete(one, phase) for one in batches for phase in phases))
        assert [answer.status for answer in answers] == [200] * 200
        to_run = await asyncio.gather(*(orchestrator.to_run(one, "comprehensive") for one in batches))
    assert dict(zip(batches, to_run, strict=True)) == {one: [] for one in batches}


async def test_beyond_the_limit_requests_are_refused_at_once_and_probes_are_not(
    narrow_service: RunningService, held: HeldAnswers
) -> None:
    async with Orchestrator(narrow_service.base) as orchestrator:
        assert (await orchestrator.complete("held", "spellcheck")).status == 200
        slow = [asyncio.ensure_future(orchestrator.define("held")) for _ in range(LIMIT)]
        await wait_until(lambda: in_flight(orchestrator, LIMIT + 1))  # the question itself is one of them
        watch = Stopwatch()
        answer = await orchestrator.define("one-too-many")
        assert watch.seconds < DEADLINE_SECONDS / 2
        assert answer.status == 503
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Retry-After"] == "3"
        assert answer.json["correlation_id"] == answer.headers["X-Correlation-ID"]
        for probe in ("/healthz", "/readyz", "/metrics"):
            assert (await orchestrator.get(probe)).status == 200
        narrow_service.call(held.let_go.set)
        assert [(await request).status for request in slow] == [200] * LIMIT
        assert (await orchestrator.define("room-again")).status == 200


async def test_a_caller_that_hangs_up_disturbs_nobody(service: RunningService) -> None:
    for sent in (HEAD, HEAD + BODY[:5], HEAD + BODY):
        async with connection(service, sent):
            pass
    async with Orchestrator(service.base) as orchestrator:
        await wait_until(lambda: in_flight(orchestrator, 1))
        assert (await orchestrator.define("after")).status == 200


async def in_flight(orchestrator: Orchestrator, count: int) -> bool:
    return await orchestrator.metric("bcs_http_requests_in_flight") == count
