"""Outages of Redis and Kafka: the process stays, reports them, and loses nothing."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.conn import create_conn
from aiokafka.protocol.admin import CreateTopicsRequest

from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.wire import topics
from tests.support.events import registered, spellchecked
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import PARTITIONS, Platform, create_platform_topics, uuids, values
from tests.support.service import Answer, Orchestrator, RunningService, running_service
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 1.5
QUICK_STORE = {
    "request_deadline_seconds": DEADLINE_SECONDS,
    "redis_deadline_seconds": 0.4,
    "redis_breaker_failures": 3,
    "redis_breaker_open_seconds": 0.3,
}
BOTH = ["spellcheck", "ai_feedback"]


async def health(orchestrator: Orchestrator) -> tuple[str, str, str]:
    """The status of the service, of Redis and of Kafka; liveness must be given whatever is away."""
    answer = await orchestrator.get("/healthz")
    assert answer.status == 200
    dependencies = answer.json["dependencies"]
    return answer.json["status"], dependencies["redis"]["status"], dependencies["kafka"]["status"]


async def assert_nothing_crashed(service: RunningService, orchestrator: Orchestrator) -> None:
    assert [
        name for name, _, value in await orchestrator.samples() if name == "bcs_actor_restarts_total" and value
    ] == []
    assert service.restarted() == []


async def assert_refused_in_time(request: Callable[[], Any]) -> None:
    watch = Stopwatch()
    answer: Answer = await request()
    assert watch.seconds < DEADLINE_SECONDS + 0.5
    assert answer.status == 503, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json["correlation_id"] == answer.headers["X-Correlation-ID"]


# --- Redis -----------------------------------------------------------------------------------------------------------

GOING: dict[str, Callable[[EmbeddedServer], None]] = {
    "away at the start": EmbeddedServer.kill,
    "killed": EmbeddedServer.kill,
    "frozen": EmbeddedServer.freeze,
}


@pytest.mark.parametrize("how", GOING)
async def test_redis_away_is_survived(
    kafka_bootstrap_servers: str, private_valkey: EmbeddedServer, batch: str, how: str
) -> None:
    async with Platform(kafka_bootstrap_servers) as platform:
        if how == "away at the start":
            GOING[how](private_valkey)
        async with (
            running_service(
                redis_url=f"redis://{private_valkey.address}",
                kafka_bootstrap_servers=kafka_bootstrap_servers,
                **QUICK_STORE,
            ) as service,
            Orchestrator(service.base) as orchestrator,
        ):
            if how != "away at the start":
                await platform.send(registered(f"{batch}-before", ["a"]), spellchecked(f"{batch}-before", "a"))
                await wait_until(lambda: platform.caught_up(service.group))
                assert await orchestrator.to_run(f"{batch}-before") == ["ai_feedback"]
                await wait_until(lambda: has_health(orchestrator, "healthy", "healthy", "healthy"))
                GOING[how](private_valkey)

            for _ in range(6):  # more than the circuit breaker takes
                await assert_refused_in_time(lambda: orchestrator.define(batch))
            await assert_refused_in_time(lambda: orchestrator.complete(batch, "spellcheck"))
            await assert_refused_in_time(lambda: orchestrator.get("/readyz"))
            await wait_until(lambda: has_health(orchestrator, "degraded", "unhealthy", "healthy"))
            opened = await wait_until(lambda: orchestrator.metric("bcs_circuit_breaker_state", dependency="redis"))
            assert opened in (1, 2), "half-open or open"
            await platform.send(registered(batch, ["a", "b"]), spellchecked(batch, "a"), spellchecked(batch, "b"))
            # Asked and refused while the events wait: nobody gets a guess.
            await wait_until(lambda: at_least(orchestrator, "bcs_intake_in_flight", 3))
            await assert_refused_in_time(lambda: orchestrator.define(batch))
            assert await platform.uncommitted(service.group) != {}

            private_valkey.thaw() if how == "frozen" else private_valkey.restart()
            await wait_until(lambda: platform.caught_up(service.group), description="the events are applied")
            assert await orchestrator.to_run(batch) == ["ai_feedback"]
            if how != "away at the start":
                assert await orchestrator.to_run(f"{batch}-before") == ["ai_feedback"], "what was durable still is"
            await wait_until(lambda: has_health(orchestrator, "healthy", "healthy", "healthy"))
            assert (await orchestrator.get("/readyz")).status == 200
            assert await orchestrator.metric("bcs_circuit_breaker_state", dependency="redis") == 0
            await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))
            await assert_nothing_crashed(service, orchestrator)


async def has_health(orchestrator: Orchestrator, *expected: str) -> bool:
    return await health(orchestrator) == expected


async def at_least(orchestrator: Orchestrator, metric: str, value: float) -> bool:
    return (await orchestrator.metric(metric) or 0) >= value


async def test_redis_that_is_only_slow_is_waited_for(
    kafka_bootstrap_servers: str, private_valkey: EmbeddedServer, batch: str
) -> None:
    async with (
        FaultProxy("127.0.0.1", private_valkey.port) as proxy,
        running_service(
            redis_url=f"redis://{proxy.address}", kafka_bootstrap_servers=kafka_bootstrap_servers, **QUICK_STORE
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        assert (await orchestrator.complete(batch, "spellcheck")).status == 200
        proxy.delay(0.1)
        assert await orchestrator.to_run(batch) == ["ai_feedback"]
        proxy.delay(5)
        await assert_refused_in_time(lambda: orchestrator.define(batch))
        proxy.delay(0)
        await wait_until(lambda: is_ready(orchestrator))
        assert await orchestrator.to_run(batch) == ["ai_feedback"]
        await assert_nothing_crashed(service, orchestrator)


async def test_connections_to_redis_that_are_cut_are_replaced(
    kafka_bootstrap_servers: str, private_valkey: EmbeddedServer, batch: str
) -> None:
    essays = [f"essay-{number}" for number in range(20)]
    async with (
        Platform(kafka_bootstrap_servers) as platform,
        FaultProxy("127.0.0.1", private_valkey.port) as proxy,
        running_service(
            redis_url=f"redis://{proxy.address}", kafka_bootstrap_servers=kafka_bootstrap_servers, **QUICK_STORE
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await platform.send(registered(batch, essays))
        await wait_until(lambda: platform.caught_up(service.group))
        for essay in essays:
            await proxy.cut()
            await platform.send(spellchecked(batch, essay))
            assert (await orchestrator.define(batch)).status in (200, 503), (
                "a connection that is gone is no fault of ours"
            )
        await wait_until(lambda: platform.caught_up(service.group))
        await wait_until(lambda: is_ready(orchestrator))
        assert await orchestrator.to_run(batch) == ["ai_feedback"]
        await assert_nothing_crashed(service, orchestrator)


async def is_ready(orchestrator: Orchestrator) -> bool:
    return (await orchestrator.get("/readyz")).status == 200 and (await orchestrator.define("any")).status == 200


# --- Kafka -----------------------------------------------------------------------------------------------------------


class Broker:
    """A broker that clients reach through a proxy, with the topics of the platform."""

    def __init__(self, server: EmbeddedServer, proxy: FaultProxy) -> None:
        self.server, self.proxy = server, proxy

    async def go(self, *, for_good: bool) -> None:
        """Be away: behind a cut line, or without a memory."""
        self.proxy.refuse()
        await self.proxy.cut()
        if for_good:
            self.server.kill()

    async def come_back(self) -> None:
        """Be there again, with the topics, but, after a kill, without messages and offsets."""
        if not self.server.running:
            self.server.restart()
            # Before any client is let in: the embedded broker takes messages for a topic that it lacks, and loses them.
            await create_topics_directly(self.server.port)
        self.proxy.accept()


async def create_topics_directly(port: int) -> None:
    """Create the topics by a connection of our own: an admin client would go on to the address of the proxy."""
    connection = await create_conn("127.0.0.1", port)
    wanted: list[Any] = [(topic, PARTITIONS, 1, [], []) for topic in (*topics.CONSUMED, *topics.PUBLISHED)]
    try:
        response = await connection.send(CreateTopicsRequest(wanted, 5_000, validate_only=False))
    finally:
        connection.close()
    assert {error[1] for error in response.topic_errors} == {0}


@asynccontextmanager
async def broker_behind_a_proxy(directory: Path, port: int) -> AsyncIterator[Broker]:
    with embedded.kafka(directory, advertised_port=port) as server:
        async with FaultProxy("127.0.0.1", server.port, port) as proxy:
            await create_platform_topics(proxy.address)
            yield Broker(server, proxy)


@pytest.mark.parametrize(
    "how", ["killed", *(pytest.param(how, marks=pytest.mark.release) for how in ("away at the start", "cut off"))]
)
async def test_kafka_away_leaves_http_unaffected_and_its_announcements_follow(
    tmp_path: Path, redis_url: str, free_port: int, batch: str, how: str
) -> None:
    async with broker_behind_a_proxy(tmp_path, free_port) as broker:
        if how == "away at the start":
            await broker.go(for_good=False)
        async with (
            running_service(redis_url=redis_url, kafka_bootstrap_servers=broker.proxy.address) as service,
            Orchestrator(service.base) as orchestrator,
        ):
            if how != "away at the start":
                async with Platform(broker.proxy.address) as platform:
                    await platform.send(spellchecked(f"{batch}-before", "a"))
                    await wait_until(lambda: platform.caught_up(service.group))
                await wait_until(lambda: has_health(orchestrator, "healthy", "healthy", "healthy"))
                await broker.go(for_good=how == "killed")

            await wait_until(lambda: has_health(orchestrator, "degraded", "healthy", "unhealthy"))
            await wait_until(lambda: waits(orchestrator, "intake"))
            assert (await orchestrator.get("/readyz")).status == 200
            assert (await orchestrator.complete(batch, "spellcheck")).status == 200
            watch = Stopwatch()
            for number in range(10):
                assert await orchestrator.to_run(batch, correlation_id=f"while-away-{number}") == ["ai_feedback"]
            assert watch.seconds < 2, "nothing waits for Kafka"
            await wait_until(lambda: at_least(orchestrator, "bcs_outbox_backlog", 10))

            await broker.come_back()
            async with Platform(broker.proxy.address) as platform:
                await platform.send(registered(f"{batch}-after", ["a"]), spellchecked(f"{batch}-after", "a"))
                await wait_until(lambda: platform.caught_up(service.group))
                assert await orchestrator.to_run(f"{batch}-after") == ["ai_feedback"]
                await wait_until(lambda: all_announced(platform, batch))
            await wait_until(lambda: has_health(orchestrator, "healthy", "healthy", "healthy"))
            await assert_nothing_crashed(service, orchestrator)


async def test_health_says_in_words_why_kafka_is_away(free_port: int) -> None:
    async with (
        running_service(
            use_mock_repository=True, kafka_bootstrap_servers=f"127.0.0.1:{free_port}", shutdown_seconds=1.0
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await wait_until(lambda: has_health(orchestrator, "degraded", "not_configured", "unhealthy"))
        await wait_until(lambda: kafka_was_tried(service))
        said = (await orchestrator.get("/healthz")).json["dependencies"]["kafka"]["message"]
        assert "ExceptionGroup" not in said
        assert "127.0.0.1" in said


async def waits(orchestrator: Orchestrator, actor: str) -> bool:
    """True if `/healthz` shows a wait of the actor."""
    return bool((await orchestrator.get("/healthz")).json["waits"][actor])


def kafka_was_tried(service: RunningService) -> bool:
    return service.service.kafka.connected is False


async def all_announced(platform: Platform, batch: str) -> bool:
    records = await platform.messages(topics.PHASE_SKIPPED, batch)
    return uuids(f"while-away-{number}" for number in range(10)) <= {
        record["data"]["correlation_id"] for record in values(records)
    }
