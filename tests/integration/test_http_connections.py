"""Connections and their files are limited: probes are answered, and no caller gets a 500."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from errno import EMFILE
from functools import partial
from pathlib import Path
from time import monotonic

import anyio
import pytest
from prometheus_client import CollectorRegistry

from bcs.config.loading import load_settings
from bcs.devtools.servers.embedded import free_port
from bcs.errors import StoreUnavailable
from bcs.http.descriptors import most_connections
from bcs.http.problems import KINDS, problem_of
from tests.integration.stores import MakeGateway
from tests.support.descriptors import limited_files, no_more_files
from tests.support.held_answers import HeldAnswers
from tests.support.raw_http import Connection, define, get
from tests.support.service import Orchestrator, RunningService, running_service, serve, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

MOST = 10
BODY = json.dumps({"batch_id": "b", "requested_pipeline": "ai_feedback", "correlation_id": "c"}).encode()
PROBES = ("/healthz", "/readyz", "/metrics")


@pytest.fixture(scope="module")
def held() -> HeldAnswers:
    return HeldAnswers()


@pytest.fixture(scope="module")
def service(held: HeldAnswers) -> Iterator[RunningService]:
    """One that takes few connections."""
    with service_in_thread(
        held.reach, use_mock_repository=True, kafka_bootstrap_servers="127.0.0.1:1", http_max_connections=MOST
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


async def status_of(reader: asyncio.StreamReader) -> int:
    """Of the next answer, which is read to its end."""
    with anyio.fail_after(20):
        head = await reader.readuntil(b"\r\n\r\n")
        [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
        await reader.readexactly(int(length.partition(b": ")[2]))
    return int(head.split()[1])


async def test_a_new_connection_replaces_the_one_that_is_idle_longest(service: RunningService) -> None:
    async with AsyncExitStack() as stack:
        idle: list[Connection] = []
        for _ in range(MOST):
            idle.append(await stack.enter_async_context(connection(service, get("/readyz"))))
            assert await status_of(idle[-1][0]) == 200
        for number in range(2):
            reader, _ = await stack.enter_async_context(connection(service, define()))
            assert await status_of(reader) == 200
            with anyio.fail_after(20):
                assert await idle[number][0].read() == b""
        for reader, writer in idle[2:]:
            writer.write(define())
            assert await status_of(reader) == 200


async def test_where_all_connections_are_at_work_only_probes_are_answered(
    service: RunningService, held: HeldAnswers
) -> None:
    async with AsyncExitStack() as stack:
        orchestrator = await stack.enter_async_context(Orchestrator(service.base))
        assert (await orchestrator.complete("held", "spellcheck")).status == 200
        registry = service.service.telemetry.registry
        await wait_until(lambda: registry.get_sample_value("bcs_http_connections") == 0)
        busy: list[Connection] = []
        for number in range(1, MOST + 1):
            busy.append(await stack.enter_async_context(connection(service, define("held"))))
            # One by one, and not asked over HTTP: a new connection replaces one whose request was not read yet.
            await wait_until(partial(are_in_flight, registry, number))
        for probe in PROBES:
            assert (await orchestrator.get(probe)).status == 200
        reader, _ = await stack.enter_async_context(connection(service, get("/readyz")))
        assert await status_of(reader) == 200
        with anyio.fail_after(20):
            assert await reader.read() == b"", "without room a connection ends with its first answer"
        refused = [await orchestrator.define("b") for _ in range(20)]
        assert Counter(answer.status for answer in refused) == {503: 20}
        assert {answer.headers["Content-Type"] for answer in refused} == {"application/problem+json"}
        assert all("Retry-After" in answer.headers for answer in refused)
        service.call(held.let_go.set)
        assert [await status_of(reader) for reader, _ in busy] == [200] * MOST
        await wait_until(lambda: is_open(orchestrator))


def are_in_flight(registry: CollectorRegistry, number: int) -> bool:
    return registry.get_sample_value("bcs_http_requests_in_flight") == number


async def is_open(orchestrator: Orchestrator) -> bool:
    return (await orchestrator.define("b")).status == 200


async def test_without_files_probes_are_answered_and_calls_get_a_503(redis_url: str) -> None:
    async with (
        running_service(redis_url=redis_url, kafka_bootstrap_servers="127.0.0.1:1") as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await wait_until(lambda: is_ready(orchestrator))
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(20)]
            early = sockets.pop()
            early.connect(service.service.address)
            assert answer_to(early, service, get("/healthz")) == 200
            with no_more_files():
                assert answer_to(early, service, define()) in {200, 503}
                for probe in PROBES * 3:
                    assert answer_to(sockets.pop(), service, get(probe)) == 200
                assert {answer_to(sockets.pop(), service, define()) for _ in range(10)} <= {200, 503}
        await wait_until(lambda: is_open(orchestrator))


def answer_to(caller: socket.socket, service: RunningService, request: bytes) -> int:
    caller.settimeout(5)
    try:
        caller.getpeername()
    except OSError:
        caller.connect(service.service.address)
    caller.sendall(request)
    received = b""
    while not received.endswith(b"}\n") and b"200 OK" not in received:
        more = caller.recv(65_536)
        assert more, f"closed after {received!r}"
        received += more
    return int(received.split()[1])


@pytest.mark.parametrize("how", ["call", "call_multiplexed"])
async def test_a_connection_to_redis_that_lacks_a_file_is_an_outage(
    redis_url: str, make_gateway: MakeGateway, how: str
) -> None:
    gateway = make_gateway(redis_url)
    with no_more_files(), pytest.raises(StoreUnavailable):
        await getattr(gateway, how)(("PING",))


def test_a_file_that_is_lacking_is_no_fault_of_the_service() -> None:
    problem = problem_of(OSError(EMFILE, "Too many open files"))
    assert problem is not None
    assert problem.status == 503
    assert KINDS[problem.kind].retry


async def is_ready(orchestrator: Orchestrator) -> bool:
    return (await orchestrator.get("/readyz")).status == 200


@pytest.mark.parametrize(("limit", "most"), [(1024, 856), (300, 132), (40, 16), (3000, 2048)])
def test_how_many_connections_there_may_be_follows_from_the_limit_of_files(limit: int, most: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and limit > hard:
        pytest.skip("this machine allows fewer files")
    # Before the limit: to judge addresses opens files, and this process has many already.
    derived, chosen = load_settings(), load_settings(http_max_connections=7)
    with limited_files(limit):
        assert most_connections(derived) == most
        assert most_connections(chosen) == 7


BETWEEN_CALLERS_SECONDS = 0.01


@pytest.mark.release
@pytest.mark.serial
@pytest.mark.parametrize("most", [{}, {"BCS_HTTP_MAX_CONNECTIONS": 10_000}], ids=["derived", "files used up"])
async def test_a_process_with_few_files_outlives_a_crowd(tmp_path: Path, redis_url: str, most: dict[str, int]) -> None:
    with limited_files(256):
        process = serve(tmp_path, redis_url, f"127.0.0.1:{free_port()}", **most, forked=False)
    statuses: Counter[int] = Counter()
    slowest = 0.0
    with process:
        await process.answers()
        async with AsyncExitStack() as stack, Orchestrator(process.base) as orchestrator:
            port = int(process.environment["BCS_HTTP_PORT"])
            for number in range(600):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                stack.callback(writer.close)
                # A silent caller makes room for others only after a while, so a crowd that comes all at once gets 503.
                await asyncio.sleep(BETWEEN_CALLERS_SECONDS)
                if number % 2:
                    writer.write(get("/readyz"))
                if number > 300 and not number % 5:
                    statuses[(await orchestrator.define("b")).status] += 1
                    for probe in PROBES:
                        began = monotonic()
                        assert (await orchestrator.get(probe)).status == 200
                        slowest = max(slowest, monotonic() - began)
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
    assert statuses.keys() <= {200, 503}
    assert statuses[200] >= 0.95 * statuses.total()
    assert slowest < 1.0
