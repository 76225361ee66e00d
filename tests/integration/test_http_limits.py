"""The limits of each caller: its rate, its new batches, and the connections of its address."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from bcs.http.callers import MOST_ABOVE_SHARE
from bcs.http.requests import DEAD_LETTER_WRITTEN
from tests.support.held_answers import HeldAnswers
from tests.support.raw_http import Connection, define, get
from tests.support.service import COMPLETE, DEFINE, Answer, Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BURST = 3
# So few that no test gets another one.
PER_SECOND = 0.001
NEW_BATCHES = 4
MOST_OF_ADDRESS = 5
PROBES = ("/healthz", "/readyz", "/metrics")
NOWHERE = {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1", "shutdown_seconds": 2.0}


@asynccontextmanager
async def connection(service: RunningService, *sent: bytes, source: str | None = None) -> AsyncIterator[Connection]:
    """A connection.

    :param source: the address of the caller; None for the usual one.
    """
    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(*service.service.address, local_addr=local)
    try:
        writer.writelines(sent)
        yield reader, writer
    finally:
        writer.close()


async def answer_on(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, head and body of the next answer."""
    with anyio.fail_after(20):
        head = await reader.readuntil(b"\r\n\r\n")
        [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
        body = await reader.readexactly(int(length.partition(b": ")[2]))
    return int(head.split()[1]), head, body


def limited(service: RunningService, limit: str) -> float | None:
    return service.service.telemetry.registry.get_sample_value("bcs_http_limited_total", {"limit": limit})


@pytest.fixture
def service_with_rates() -> Iterator[RunningService]:
    with service_in_thread(**NOWHERE, http_rate_per_second=PER_SECOND, http_rate_burst=BURST) as running:
        yield running


async def test_a_caller_beyond_its_rate_gets_a_429_and_probes_are_not_counted(
    service_with_rates: RunningService,
) -> None:
    async with Orchestrator(service_with_rates.base, keep_alive=True) as orchestrator:
        for probe in PROBES * 3:
            assert (await orchestrator.get(probe)).status == 200
        # Each way to an answer: at once, by the router, and for a path without a route.
        assert (await orchestrator.define("b")).status == 200
        assert (await orchestrator.get("/internal/v1/batches/b")).status == 404
        assert (await orchestrator.get("/nowhere")).status == 404
        assert limited(service_with_rates, "rate") == 0
        refused = [
            await orchestrator.define("b"),
            await orchestrator.get("/internal/v1/batches/b"),
            await orchestrator.get("/nowhere"),
        ]
        for answer in refused:
            assert_is_limited(answer, "too-many-requests")
            assert 900 <= int(answer.headers["Retry-After"]) <= 1 / PER_SECOND
        for probe in PROBES * 3:
            assert (await orchestrator.get(probe)).status == 200
        assert limited(service_with_rates, "rate") == len(refused)
    # Another address has a rate of its own.
    async with connection(service_with_rates, define(), source="127.0.0.2") as (reader, _):
        assert (await answer_on(reader))[0] == 200


def assert_is_limited(answer: Answer, kind: str) -> None:
    assert answer.status == 429
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["type"] == f"urn:bcs:problem:{kind}"
    assert answer.json["correlation_id"] == answer.headers["X-Correlation-ID"]


@pytest.fixture
def service_with_quotas(redis_url: str, module_database_url: str) -> Iterator[RunningService]:
    with service_in_thread(
        redis_url=redis_url,
        database_url=module_database_url,
        kafka_bootstrap_servers="127.0.0.1:1",
        http_new_batches_per_minute=NEW_BATCHES,
    ) as running:
        yield running


async def test_beyond_the_quota_unknown_batches_leave_nothing_and_known_ones_are_answered(
    service_with_quotas: RunningService,
) -> None:
    async with Orchestrator(service_with_quotas.base, keep_alive=True) as orchestrator:
        # Neither a refused request nor a read of an unknown batch uses the quota.
        assert (await orchestrator.define("never", pipeline="unknown")).status == 404
        assert (await orchestrator.get("/internal/v1/batches/never")).status == 404
        for number in range(NEW_BATCHES // 2):
            assert (await orchestrator.complete(f"reported-{number}", "spellcheck")).status == 200
            assert (await orchestrator.define(f"asked-{number}")).status == 200
        for answer in (await orchestrator.define("fresh"), await orchestrator.complete("fresh", "spellcheck")):
            assert_is_limited(answer, "too-many-new-batches")
            assert 1 <= int(answer.headers["Retry-After"]) <= 60 / NEW_BATCHES
            assert DEAD_LETTER_WRITTEN not in answer.headers
        for _ in range(3):
            assert await orchestrator.to_run("reported-0") == ["ai_feedback"]
            assert (await orchestrator.complete("reported-1", "nlp")).status == 200
        await wait_until(lambda: is_in_the_archive(orchestrator, "asked-1"))
        for path in ("/internal/v1/batches/fresh", "/internal/v1/batches/fresh/history"):
            assert (await orchestrator.get(path)).status == 404
        assert await orchestrator.metric("bcs_pipeline_refusals_total", reason="too_many_new_batches") == 1
    assert limited(service_with_quotas, "new_batches") == 2
    # Another address has a quota of its own.
    async with connection(service_with_quotas, define("fresh"), source="127.0.0.2") as (reader, _):
        assert (await answer_on(reader))[0] == 200


async def is_in_the_archive(orchestrator: Orchestrator, batch: str) -> bool:
    return (await orchestrator.get(f"/internal/v1/batches/{batch}/history")).status == 200


@pytest.fixture
def held() -> HeldAnswers:
    return HeldAnswers()


@pytest.fixture
def service_with_shares(held: HeldAnswers) -> Iterator[RunningService]:
    with service_in_thread(held.reach, **NOWHERE, http_max_connections_per_address=MOST_OF_ADDRESS) as running:
        yield running


async def test_an_address_has_a_share_of_the_connections_and_gives_up_its_own_first(
    service_with_shares: RunningService,
) -> None:
    async with AsyncExitStack() as stack:
        other, _ = await stack.enter_async_context(connection(service_with_shares, get("/readyz"), source="127.0.0.2"))
        assert (await answer_on(other))[0] == 200
        idle: list[Connection] = []
        for _ in range(MOST_OF_ADDRESS + 2):
            idle.append(await stack.enter_async_context(connection(service_with_shares, get("/readyz"))))
            assert (await answer_on(idle[-1][0]))[0] == 200
        for reader, _ in idle[:2]:
            with anyio.fail_after(20):
                assert await reader.read() == b"", "the connections that are idle longest give way"
        for reader, writer in idle[2:]:
            writer.write(define())
            assert (await answer_on(reader))[0] == 200
        assert not other.at_eof()
    assert limited(service_with_shares, "connections_per_address") == 0


async def test_beyond_the_share_of_an_address_only_probes_are_answered(
    service_with_shares: RunningService, held: HeldAnswers
) -> None:
    service = service_with_shares
    registry = service.service.telemetry.registry
    async with AsyncExitStack() as stack:
        async with connection(service, complete("held")) as (reader, _):
            assert (await answer_on(reader))[0] == 200
        await wait_until(lambda: registry.get_sample_value("bcs_http_connections") == 0)
        busy = [await stack.enter_async_context(connection(service, define("held"))) for _ in range(MOST_OF_ADDRESS)]
        await wait_until(lambda: registry.get_sample_value("bcs_http_requests_in_flight") == MOST_OF_ADDRESS)
        # Silent connections can't keep probes out.
        for _ in range(MOST_ABOVE_SHARE * 3):
            await stack.enter_async_context(connection(service))
        for probe in PROBES * 3:
            async with connection(service, get(probe)) as (reader, _):
                assert (await answer_on(reader))[0] == 200
                with anyio.fail_after(20):
                    assert await reader.read() == b"", "beyond the share, a connection ends with its first answer"
        statuses: Counter[int] = Counter()
        for _ in range(10):
            async with connection(service, define()) as (reader, _):
                status, head, body = await answer_on(reader)
                assert json.loads(body)["detail"] == "too many connections from one address at a time"
                assert b"\r\nContent-Type: application/problem+json\r\n" in head
                assert b"\r\nRetry-After: " in head
                statuses[status] += 1
        assert statuses == {503: 10}
        assert (limited(service, "connections_per_address") or 0) >= 10
        async with connection(service, define(), source="127.0.0.2") as (reader, _):
            assert (await answer_on(reader))[0] == 200, "other addresses are not affected"
        service.call(held.let_go.set)
        assert [(await answer_on(reader))[0] for reader, _ in busy] == [200] * MOST_OF_ADDRESS
    await wait_until(lambda: registry.get_sample_value("bcs_http_connections") == 0)
    async with Orchestrator(service.base) as orchestrator:
        assert (await orchestrator.define("b")).status == 200, "no connection is counted for ever"


def complete(batch: str) -> bytes:
    body = json.dumps({"batch_id": batch, "phase_name": "spellcheck", "success": True}).encode()
    return define().replace(DEFINE.encode(), COMPLETE.encode()).partition(b"Content-Length")[0] + (
        f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    )
