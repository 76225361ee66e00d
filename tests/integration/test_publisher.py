"""The publisher crashes with unacked messages, or Redis refuses to lease messages."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from bcs.actors.publisher import _ROUND_SECONDS
from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.observability.failpoints import FailPoint
from bcs.storage.redis import stream_set
from bcs.wire import topics
from tests.support.kafka import Platform, values
from tests.support.redis_servers import redis_server
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("crash_at", [FailPoint.PUBLISHER_LEASED, FailPoint.PUBLISHER_ACKNOWLEDGED])
async def test_the_next_publisher_publishes_the_entries_of_a_crashed_one(
    kafka_bootstrap_servers: str, batch: str, crash_at: FailPoint
) -> None:
    crashes = 0

    async def crash_once(point: FailPoint, _: str) -> None:
        nonlocal crashes
        if point is crash_at and not crashes:
            crashes += 1
            raise RuntimeError("the test says so")

    async with (
        Platform(kafka_bootstrap_servers) as platform,
        running_service(
            crash_once,
            use_mock_repository=True,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            # So late that only the next publisher can be the one that publishes.
            outbox_takeover_seconds=600.0,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        assert (await orchestrator.complete(batch, "spellcheck")).status == 200
        assert await orchestrator.to_run(batch) == ["ai_feedback"]

        async def published() -> bool:
            return crashes == 1 and await platform.messages(topics.PHASE_SKIPPED, batch) != []

        await wait_until(published)

        async def nothing_left() -> bool:
            return service.run(service.service.outbox.backlog) == 0

        await wait_until(nothing_left)
        records = values(await platform.messages(topics.PHASE_SKIPPED, batch))
        assert len({record["event_id"] for record in records}) == 1
        # What Kafka had acknowledged before the crash is published again.
        assert len(records) == (2 if crash_at is FailPoint.PUBLISHER_ACKNOWLEDGED else 1)


async def test_a_slow_round_of_the_publisher_is_followed_by_the_next(kafka_bootstrap_servers: str, batch: str) -> None:
    async def slow(point: FailPoint, _: str) -> None:
        if point is FailPoint.PUBLISHER_ACKNOWLEDGED:
            # What is tested: a round that takes longer than the next one waits.
            await anyio.sleep(2 * _ROUND_SECONDS)

    async with (
        Platform(kafka_bootstrap_servers) as platform,
        running_service(slow, use_mock_repository=True, kafka_bootstrap_servers=kafka_bootstrap_servers) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        for number in range(3):
            each = f"{batch}-{number}"
            assert (await orchestrator.complete(each, "spellcheck")).status == 200
            assert await orchestrator.to_run(each) == ["ai_feedback"]
            await wait_until(partial(platform.messages, topics.PHASE_SKIPPED, each))
        assert service.restarted() == []


@pytest.mark.release
async def test_without_xautoclaim_everything_else_is_published(
    tmp_path: Path, kafka_bootstrap_servers: str, batch: str, caplog: pytest.LogCaptureFixture
) -> None:
    waits: dict[Any, Any] = {"kind": "phase_skipped", "topic": topics.PHASE_SKIPPED, "value": "{}"}
    with redis_server(tmp_path, "--rename-command", "XAUTOCLAIM", "") as server:
        async with Redis.from_url(f"redis://{server.address}") as control:
            # Only of a stream with entries a publisher tries to take some over.
            await control.xadd("bcs:{outbox:3}", waits)
        async with (
            Platform(kafka_bootstrap_servers) as platform,
            running_service(
                redis_url=f"redis://{server.address}",
                redis_key_prefix="bcs:",
                kafka_bootstrap_servers=kafka_bootstrap_servers,
            ) as service,
            Orchestrator(service.base) as orchestrator,
        ):
            assert (await orchestrator.complete(batch, "spellcheck")).status == 200
            assert await orchestrator.to_run(batch) == ["ai_feedback"]
            await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))

            async def is_named() -> bool:
                health = (await orchestrator.get("/healthz")).json
                redis, waits = health["dependencies"]["redis"], health["waits"]["publisher"]
                return "XAUTOCLAIM" in redis["message"] and any("XAUTOCLAIM" in wait["cause"] for wait in waits)

            await wait_until(is_named)
            said = [vars(record) for record in caplog.records if record.msg == "waiting_for_dependency"]
            [refused] = [one["error"] for one in said if "take over" in one["operation"]]
            assert "XAUTOCLAIM" in refused


async def test_a_waiting_publisher_logs_each_cause_once_and_the_end(
    private_valkey: EmbeddedServer,
    kafka_bootstrap_servers: str,
    batch: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "bcs")
    monkeypatch.setattr(stream_set, "_RETRY_SECONDS", 0.01)
    operation = "access streams of the outbox"

    def said(event: str) -> list[str]:
        records = [vars(record) for record in caplog.records if record.msg == event]
        return [f"{one['levelname']} {one.get('error')}" for one in records if one["operation"] == operation]

    async with (
        Redis.from_url(f"redis://{private_valkey.address}") as control,
        Platform(kafka_bootstrap_servers) as platform,
    ):
        await control.acl_setuser("default", enabled=True, commands=["-xreadgroup"])
        async with running_service(
            redis_url=f"redis://{private_valkey.address}",
            redis_key_prefix="bcs:",
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            outbox_poll_interval_seconds=0.01,
        ) as service:
            entry: dict[Any, Any] = {
                "kind": "phase_skipped",
                "topic": topics.PHASE_SKIPPED,
                "key": batch,
                "value": "{}",
            }
            for number in (3, 5):
                await control.xadd(f"bcs:{{outbox:{number}}}", entry)
            await wait_until(lambda: refusals(control, 20))
            [waits] = said("waiting_for_dependency")
            assert waits.startswith("WARNING")
            assert "'xreadgroup'" in waits
            assert not said("dependency_wait_ended")
            async with Orchestrator(service.base) as orchestrator:
                publisher = (await orchestrator.get("/healthz")).json["waits"]["publisher"]
            assert ["'xreadgroup'" in wait["cause"] for wait in publisher if wait["operation"] == operation] == [True]
            await control.acl_setuser("default", enabled=True, commands=["+xreadgroup"])
            assert await wait_until(lambda: said("dependency_wait_ended")) == ["INFO None"]
            await wait_until(lambda: both_published(platform, batch))


async def both_published(platform: Platform, batch: str) -> bool:
    return len(await platform.messages(topics.PHASE_SKIPPED, batch)) == 2


async def refusals(control: Redis, count: int) -> bool:
    """Whether Redis has refused commands so often for a lack of rights."""
    info = await control.info("errorstats")
    return bool(info.get("errorstat_NOPERM", {}).get("count", 0) >= count)
