"""Whatever a dependency refuses, and how: no fact is lost or buried, callers are answered, and the cause is named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
import pytest

from bcs.devtools.servers.embedded import HOST, EmbeddedServer
from bcs.devtools.servers.postgres import PostgresServer
from bcs.wire import topics
from tests.kafka.services import SESSION_SECONDS
from tests.refusals.servers import Servers, database_server, redis_server
from tests.refusals.ways import WAYS, Way
from tests.support.commands import bcs
from tests.support.events import registered, spellchecked
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]

ESSAYS = ("essay-1", "essay-2")
IN_TIME_SECONDS = 60
QUICK = {
    "kafka_enable_idempotence": True,
    "kafka_session_timeout_seconds": SESSION_SECONDS,
    "kafka_request_timeout_seconds": 2.0,
    "kafka_partition_retry_maximum_seconds": 0.5,
    "redis_deadline_seconds": 0.5,
    "redis_breaker_open_seconds": 0.3,
    "database_deadline_seconds": 0.5,
}


async def dependency(orchestrator: Orchestrator, name: str) -> dict[str, str]:
    answer = await orchestrator.get("/healthz")
    assert answer.status == 200, "an outage is no reason to restart the process"
    found: dict[str, str] = answer.json["dependencies"][name]
    return found


async def is_named(orchestrator: Orchestrator, way: Way) -> bool:
    # What is only found by asking is asked for, as the platform does all the time.
    await orchestrator.define("prunes")
    state = await dependency(orchestrator, way.dependency)
    return state["status"] == "unhealthy" and way.named in state["message"]


def is_logged(caplog: pytest.LogCaptureFixture, way: Way) -> bool:
    said = [vars(record) for record in caplog.records if record.levelno >= logging.WARNING]
    words = way.named if "messages for" not in way.named else "TOPIC_AUTHORIZATION_FAILED"
    return any(one["msg"] == way.logged and words in str(one) for one in said)


async def is_measured(orchestrator: Orchestrator, way: Way) -> bool:
    return way.measured.tells(await orchestrator.samples())


async def doctor_finds(variables: Mapping[str, str], way: Way) -> bool:
    said = await bcs("doctor", "--json", **variables)
    assert said.exit_code == 1, said.output
    failed = [finding["found"] for finding in said.json["findings"] if finding["status"] == "failed"]
    assert any((way.found or way.named) in found for found in failed), failed
    return True


async def is_healthy(orchestrator: Orchestrator, way: Way) -> bool:
    health = (await orchestrator.get("/healthz")).json
    return health["dependencies"][way.dependency]["status"] == "healthy" and not any(health["waits"].values())


async def is_complete(orchestrator: Orchestrator, batch: str) -> bool:
    answer = await orchestrator.define(batch)
    return answer.status == 200 and answer.json["final_pipeline"] == ["ai_feedback"]


async def announced(platform: Platform, batch: str) -> bool:
    return bool(await platform.messages(topics.PHASE_SKIPPED, batch))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.dependency}-{way.refuses}")
async def test_nothing_is_lost_or_buried_and_the_cause_is_named(
    way: Way,
    own_kafka: tuple[EmbeddedServer, int],
    own_database: tuple[PostgresServer, str],
    tmp_path: Path,
    unique_name: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "bcs")
    kafka, advertised = own_kafka
    async with AsyncExitStack() as stack:
        kafka_proxy = await stack.enter_async_context(FaultProxy(HOST, kafka.port, advertised))
        redis = await stack.enter_async_context(redis_server(tmp_path))
        database = await stack.enter_async_context(database_server(*own_database)) if way.with_record else None
        names = {"kafka_consumer_group_id": unique_name("group"), "redis_key_prefix": "bcs:"}
        servers = Servers(redis, database, kafka, kafka_proxy, dict(names))
        await servers.create_topics()
        service = await stack.enter_async_context(
            running_service(
                **QUICK,
                **names,
                redis_url=redis.url,
                database_url=database.url if database else None,
                kafka_bootstrap_servers=servers.bootstrap_servers,
            )
        )
        platform = await stack.enter_async_context(Platform(servers.bootstrap_servers))
        orchestrator = await stack.enter_async_context(Orchestrator(service.base))
        before, meanwhile = unique_name("before"), unique_name("meanwhile")
        for batch in ("prunes", before):
            await platform.send(registered(batch, ESSAYS), *(spellchecked(batch, essay) for essay in ESSAYS))
        await wait_until(partial(is_complete, orchestrator, before), IN_TIME_SECONDS)
        await wait_until(partial(is_healthy, orchestrator, way), IN_TIME_SECONDS)
        await wait_until(partial(announced, platform, before), IN_TIME_SECONDS)
        caplog.clear()

        sent = anyio.Event()

        async def send() -> None:
            await platform.send(registered(meanwhile, ESSAYS), *(spellchecked(meanwhile, essay) for essay in ESSAYS))
            sent.set()

        async with anyio.create_task_group() as sending, way.during(servers):
            await wait_until(partial(is_named, orchestrator, way), IN_TIME_SECONDS, description="the cause is named")
            sending.start_soon(send)
            status = str((await orchestrator.define("prunes")).status)
            if way.dependency != "kafka":
                await sent.wait()
            await wait_until(partial(is_logged, caplog, way), description="one line of the log tells of it")
            await wait_until(partial(is_measured, orchestrator, way), description="the metrics tell of it")
            assert await doctor_finds(servers.variables | {"BCS_HTTP_PORT": str(service.service.address[1])}, way)
        assert status == way.answered

        await wait_until(partial(is_healthy, orchestrator, way), IN_TIME_SECONDS, description="it is well again")
        await wait_until(partial(is_complete, orchestrator, meanwhile), IN_TIME_SECONDS, description="no fact is lost")
        await wait_until(partial(announced, platform, meanwhile), IN_TIME_SECONDS, description="it is announced")
        samples = await orchestrator.samples()
        assert not [(labels, value) for name, labels, value in samples if name == "bcs_dead_letters_total" and value]
        assert not [(labels, value) for name, labels, value in samples if name == "bcs_outbox_parked_total" and value]
        assert service.restarted() == []
