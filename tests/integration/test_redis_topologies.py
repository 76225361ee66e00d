"""The whole service and the commands, where Redis is a cluster, or is found by Sentinels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.commands import bcs, settings_of
from tests.support.documented import redis_acl
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_sentinel import SentinelSet
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

# At every commit: test_redis_sentinel.py and test_redis_cluster.py, with the stores alone.
pytestmark = [pytest.mark.anyio, pytest.mark.release]

SENTINEL_PASSWORD = "of-the-sentinels"  # noqa: S105


@pytest.fixture(params=["a cluster", "Sentinels"])
async def topology_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of servers with a user who has the documented rights."""
    acl = redis_acl("of-the-data")
    if request.param == "a cluster":
        async with RedisCluster(tmp_path) as cluster:
            for node in cluster.nodes:
                await node.ask(*acl)
                await node.ask(*redis_acl("", "redis acl in a cluster"))
            yield cluster.url.replace("://", "://bcs:of-the-data@")
        return
    async with SentinelSet(tmp_path) as sentinels:
        for server in sentinels.servers:
            await sentinels.ask(server, *acl)
        for sentinel in sentinels.sentinels:
            await sentinels.ask(sentinel, *redis_acl(SENTINEL_PASSWORD, "redis acl of a sentinel"))
        yield sentinels.url.replace("://", "://bcs:of-the-data@")


@pytest.fixture
async def service(topology_url: str, module_kafka: str, database_url: str) -> AsyncIterator[RunningService]:
    async with running_service(
        redis_url=topology_url,
        redis_key_prefix="bcs:",
        redis_sentinel_username="bcs",
        redis_sentinel_password=SENTINEL_PASSWORD,
        kafka_bootstrap_servers=module_kafka,
        database_url=database_url,
    ) as running:
        yield running


async def test_answers_and_commands_are_those_of_one_server(
    service: RunningService,
    module_kafka: str,
    database_url: str,
    unique_name: Callable[[str], str],
) -> None:
    batches = [unique_name("batch") for _ in range(10)]
    environment = {
        **settings_of(service),
        "BCS_REDIS_SENTINEL_USERNAME": "bcs",
        "BCS_REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD,
        "BCS_DATABASE_URL": database_url,
    }
    async with Platform(module_kafka) as platform, Orchestrator(service.base) as orchestrator:
        for batch in batches:
            await platform.send(registered(batch, ["a", "b"]), *(spellchecked(batch, essay) for essay in "ab"))
        await platform.send(spellchecked(batches[0], "c", "no-status"))
        await wait_until(lambda: platform.caught_up(service.group))
        for batch in batches:
            assert await orchestrator.to_run(batch) == ["ai_feedback"]
        assert (await orchestrator.get("/healthz")).json["dependencies"]["redis"]["status"] == "healthy"
        for batch in batches[:3]:
            shown = await bcs("batches", "show", batch, "--json", **environment)
            assert (shown.exit_code, shown.error) == (0, "")
            assert shown.json["source"] == "redis"
            assert {essay["essay_id"] for essay in shown.json["known_essays"]} == {"a", "b"}
        for command in (
            "dlq list",
            "intake history",
            f"batches history {batches[0]}",
            f"resolve {batches[0]} spellcheck",
        ):
            ran = await bcs(*command.split(), **environment)
            assert (ran.exit_code, ran.error) == (0, ""), command
        rebuilt = await bcs("db", "rebuild", **environment)
        assert rebuilt.exit_code == 0, rebuilt.error
        found = await bcs("doctor", "--json", **environment)
        failed = [one for one in found.json["findings"] if one["status"] == "failed"]
        assert not [one for one in failed if "redis" in one["check"] or "outbox" in one["check"]], failed
        assert service.restarted() == []


async def test_without_sentinels_the_service_goes_on_and_says_so(tmp_path: Path, module_kafka: str) -> None:
    async with (
        SentinelSet(tmp_path) as sentinels,
        running_service(redis_url=sentinels.url, kafka_bootstrap_servers=module_kafka) as service,
        Orchestrator(service.base) as orchestrator,
    ):

        async def redis() -> tuple[str, str]:
            found = (await orchestrator.get("/healthz")).json["dependencies"]["redis"]
            return found["status"], found["message"]

        async def is_healthy() -> bool:
            return await redis() == ("healthy", "reachable")

        async def is_degraded() -> bool:
            status, message = await redis()
            return status == "degraded" and "no Sentinel of BCS_REDIS_URL answers (Connection refused)" in message

        await wait_until(is_healthy)
        for sentinel in sentinels.sentinels:
            sentinel.kill()
        await wait_until(is_degraded)
        assert (await orchestrator.get("/readyz")).status == (await orchestrator.define("batch")).status == 200
        for sentinel in sentinels.sentinels:
            await sentinels.restart(sentinel)
        await wait_until(is_healthy)
