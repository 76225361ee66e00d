"""Liveness, readiness and metrics answer from the last status, and never wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

import anyio
import pytest

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.devtools.servers.postgres import PostgresServer
from bcs.observability.failpoints import FailPoint
from tests.support.kafka import create_platform_topics
from tests.support.service import Answer, Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

PROBES = ("/healthz", "/readyz", "/metrics")
AT_ONCE = 20
ROUNDS = 5


async def all_at_once(orchestrator: Orchestrator) -> dict[str, list[Answer]]:
    """Ask each of the probes many times at the same time."""
    answers = await asyncio.gather(*(orchestrator.get(path) for path in PROBES for _ in range(AT_ONCE)))
    return {path: list(answers[index * AT_ONCE : (index + 1) * AT_ONCE]) for index, path in enumerate(PROBES)}


async def readiness(orchestrator: Orchestrator) -> int:
    return (await orchestrator.get("/readyz")).status


async def is_ready(orchestrator: Orchestrator) -> bool:
    return await readiness(orchestrator) == 200


async def is_not_ready(orchestrator: Orchestrator) -> bool:
    return await readiness(orchestrator) == 503


async def assert_probes_wait_for_nothing(orchestrator: Orchestrator, statuses: dict[str, int]) -> None:
    """Ask all of them, while a request that needs Redis is known to wait for it.

    A busy machine may need longer for the answers than the request waits, so that they are asked for again. Probes that
    waited for Redis themselves would end after the request each time, since they begin after it.
    """
    for _ in range(ROUNDS):
        hanging = asyncio.ensure_future(orchestrator.define("batch"))
        await wait_until(partial(in_flight_or_ended, orchestrator, hanging))
        answers = await all_at_once(orchestrator)
        answered_meanwhile = not hanging.done()
        for path, answered in answers.items():
            assert Counter(answer.status for answer in answered) == {statuses[path]: AT_ONCE}, path
        health = {answer.json["dependencies"]["redis"]["status"] for answer in answers["/healthz"]}
        assert health == {"healthy" if statuses["/readyz"] == 200 else "unhealthy"}
        assert (await hanging).status == 503
        if answered_meanwhile:
            return
    raise AssertionError("all of them are answered while Redis still keeps a command waiting")


async def in_flight_or_ended(orchestrator: Orchestrator, request: asyncio.Future[Answer]) -> bool:
    return await orchestrator.metric("bcs_http_requests_in_flight") == 2 or request.done()


async def test_probes_never_wait_for_a_redis_that_hangs(private_valkey: EmbeddedServer) -> None:
    async with (
        running_service(
            redis_url=f"redis://{private_valkey.address}",
            kafka_bootstrap_servers="127.0.0.1:1",
            redis_deadline_seconds=0.8,
        ) as service,
        Orchestrator(service.base, keep_alive=True) as orchestrator,
    ):
        await wait_until(lambda: is_ready(orchestrator))
        private_valkey.freeze()
        await wait_until(lambda: is_not_ready(orchestrator), description="nobody but the probe itself asks Redis")
        await assert_probes_wait_for_nothing(orchestrator, {"/healthz": 200, "/readyz": 503, "/metrics": 200})
        private_valkey.thaw()
        await wait_until(lambda: is_ready(orchestrator))


@pytest.mark.release
async def test_probes_answer_while_all_dependencies_hang(
    private_valkey: EmbeddedServer, private_kafka: EmbeddedServer, private_postgres: PostgresServer
) -> None:
    await create_platform_topics(private_kafka.address)
    async with (
        running_service(
            redis_url=f"redis://{private_valkey.address}",
            kafka_bootstrap_servers=private_kafka.address,
            database_url=private_postgres.url,
            redis_probe_interval_seconds=30.0,
            redis_deadline_seconds=3.0,
            shutdown_seconds=5.0,
        ) as service,
        Orchestrator(service.base, keep_alive=True) as orchestrator,
    ):
        await wait_until(lambda: is_ready(orchestrator))
        for server in (private_valkey, private_kafka, private_postgres):
            server.freeze()
        # What is known is still that Redis is there: nothing has failed yet.
        await assert_probes_wait_for_nothing(orchestrator, {"/healthz": 200, "/readyz": 200, "/metrics": 200})
        for server in (private_valkey, private_kafka, private_postgres):
            server.thaw()


async def test_a_failed_request_ends_readiness_before_the_next_probe(
    private_valkey: EmbeddedServer,
) -> None:
    async with (
        running_service(
            redis_url=f"redis://{private_valkey.address}",
            kafka_bootstrap_servers="127.0.0.1:1",
            redis_probe_interval_seconds=60.0,
            redis_breaker_failures=2,
            redis_breaker_open_seconds=30.0,
        ) as service,
        Orchestrator(service.base, keep_alive=True) as orchestrator,
    ):
        await wait_until(lambda: is_ready(orchestrator))
        private_valkey.kill()
        assert {(await orchestrator.define("batch")).status for _ in range(3)} == {503}
        assert await is_not_ready(orchestrator)
        assert (await orchestrator.get("/healthz")).json["dependencies"]["redis"]["status"] == "unhealthy"


class HeldStart:
    """Holds the metrics actor as it starts, once it is armed, until it is let go."""

    def __init__(self) -> None:
        self.armed = False
        self.let_go: anyio.Event | None = None  # on the service's event loop

    async def reach(self, point: FailPoint, subject: str) -> None:
        """See `bcs.observability.failpoints.FailPointHook`."""
        if self.armed and (point, subject) == (FailPoint.STARTING, "metrics"):
            self.let_go = anyio.Event()
            await self.let_go.wait()


async def test_probes_answer_while_the_metrics_actor_hangs(redis_url: str) -> None:
    held = HeldStart()
    async with (
        running_service(
            held.reach, redis_url=redis_url, kafka_bootstrap_servers="127.0.0.1:1", request_deadline_seconds=20.0
        ) as service,
        Orchestrator(service.base, keep_alive=True) as orchestrator,
    ):
        await wait_until(lambda: is_ready(orchestrator))
        held.armed = True
        kill(service, "metrics")
        await wait_until(lambda: held.let_go)
        answers = await all_at_once(orchestrator)
        statuses = {answer.status for answered in answers.values() for answer in answered}
        assert statuses == {200}
        assert b"\nbcs_circuit_breaker_state" in answers["/metrics"][0].body
        assert held.let_go is not None
        service.call(held.let_go.set)


def kill(service: RunningService, actor: str) -> None:
    assert service.call(service.service.root.kill, actor)
