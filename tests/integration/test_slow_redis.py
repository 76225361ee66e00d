"""A slow and overloaded Redis: actors wait, and none counts as hung."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from bcs.devtools.servers.embedded import EmbeddedServer
from tests.support.events import spellchecked
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BATCHES, CONNECTIONS, REPLY_SECONDS, HANG_SECONDS, DEADLINE_SECONDS = 30, 4, 0.05, 1.5, 5.0


@pytest.mark.release
async def test_waiting_in_line_for_a_slow_redis_is_no_hang(
    kafka_bootstrap_servers: str, private_valkey: EmbeddedServer
) -> None:
    batches = [f"batch-{number}" for number in range(BATCHES)]
    async with (
        Platform(kafka_bootstrap_servers) as platform,
        FaultProxy("127.0.0.1", private_valkey.port) as proxy,
        running_service(
            redis_url=f"redis://{proxy.address}",
            redis_max_connections=CONNECTIONS,
            request_deadline_seconds=DEADLINE_SECONDS,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            kafka_request_timeout_seconds=0.6,
            hang_seconds=HANG_SECONDS,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await platform.send(spellchecked("first", "essay"))
        await wait_until(lambda: platform.caught_up(service.group))
        proxy.delay(REPLY_SECONDS)
        began = monotonic()
        await platform.send(*(spellchecked(batch, "essay") for batch in batches))
        answered = asyncio.create_task(ask_until_caught_up(orchestrator, platform, service))
        await wait_until(lambda: platform.caught_up(service.group), 60)
        assert monotonic() - began > HANG_SECONDS * 1.5, "it was slow enough to look hung"
        assert await answered >= CONNECTIONS
        proxy.delay(0)
        for batch in batches:
            assert await orchestrator.to_run(batch) == ["ai_feedback"]
        assert service.restarted() == []
        samples = await orchestrator.samples()
        for name in ("bcs_actor_restarts_total", "bcs_dead_letters_total"):
            assert [labels for sample, labels, value in samples if sample == name and value] == []


async def ask_until_caught_up(orchestrator: Orchestrator, platform: Platform, service: RunningService) -> int:
    asked = 0
    while not await platform.caught_up(service.group):
        began = monotonic()
        assert await orchestrator.to_run("another") == ["spellcheck", "ai_feedback"]
        assert monotonic() - began < DEADLINE_SECONDS
        asked += 1
    return asked
