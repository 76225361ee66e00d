"""A graceful stop does not take longer because a dependency is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic

import aiohttp
import pytest

from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import EmbeddedServer
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform, create_platform_topics
from tests.support.service import Orchestrator, RunningService, running_service, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def stopping_within(seconds: float, **settings: object) -> AsyncIterator[RunningService]:
    """A service whose stop, at the end, must be in order and in time."""
    stack = ExitStack()
    try:
        yield await asyncio.to_thread(stack.enter_context, service_in_thread(**settings))
    finally:
        began = monotonic()
        await asyncio.to_thread(stack.close)  # fails when the budget was not enough
        took = monotonic() - began
    assert took < seconds


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "at once"])
async def test_without_kafka_the_stop_is_quick(
    tmp_path: Path, redis_url: str, caplog: pytest.LogCaptureFixture, noticed: bool
) -> None:
    caplog.set_level(logging.DEBUG, "bcs")
    with embedded.kafka(tmp_path / "kafka") as kafka:
        await create_platform_topics(kafka.address)
        async with stopping_within(8, redis_url=redis_url, kafka_bootstrap_servers=kafka.address) as service:
            async with Platform(kafka.address) as platform:
                await platform.send(registered("batch", ["a"]), spellchecked("batch", "a"))
                await wait_until(lambda: platform.caught_up(service.group))
            kafka.kill()
            if noticed:
                await wait_until(lambda: service.service.kafka.connected is False)
                assert "kafka_unreachable" in caplog.messages
    told = [(record.getMessage(), vars(record).get("actor")) for record in caplog.records]
    assert ("actor_started", "intake") in told, "the log of the service's thread is seen here"
    assert ("actor_failed", "intake") not in told


async def test_without_redis_the_stop_is_in_time_and_unacked_events_are_reread(
    kafka_bootstrap_servers: str,
    private_valkey: EmbeddedServer,
    redis_key_prefix: str,
) -> None:
    batches, essays = [f"batch-{number}" for number in range(5)], [f"essay-{number}" for number in range(20)]
    settings = {
        "redis_url": f"redis://{private_valkey.address}",
        "redis_key_prefix": redis_key_prefix,
        "kafka_bootstrap_servers": kafka_bootstrap_servers,
        "kafka_consumer_group_id": redis_key_prefix,
        "redis_deadline_seconds": 0.4,
        "redis_breaker_open_seconds": 0.3,
        "intake_drain_timeout_seconds": 0.5,
    }
    async with Platform(kafka_bootstrap_servers) as platform:
        async with stopping_within(11.5, **settings) as service, Orchestrator(service.base) as orchestrator:
            await platform.send(*(registered(batch, essays) for batch in batches))
            await wait_until(lambda: platform.caught_up(service.group))
            private_valkey.kill()
            events = [spellchecked(batch, essay) for batch in batches for essay in essays]
            await platform.send(*events)
            await wait_until(partial(in_hand, orchestrator, len(events)))
        assert await platform.uncommitted(redis_key_prefix) != {}
        private_valkey.restart()
        async with running_service(**settings) as service, Orchestrator(service.base) as orchestrator:
            await wait_until(lambda: platform.caught_up(service.group))
            for batch in batches:
                assert await orchestrator.to_run(batch) == ["ai_feedback"]


async def in_hand(orchestrator: Orchestrator, count: int) -> bool:
    return await orchestrator.metric("bcs_intake_in_flight") == count


async def test_while_it_drains_it_says_so_and_still_answers(kafka_bootstrap_servers: str, redis_url: str) -> None:
    drain_seconds = 1.0
    with ExitStack() as stack:
        starting = service_in_thread(
            redis_url=redis_url, kafka_bootstrap_servers=kafka_bootstrap_servers, shutdown_drain_seconds=drain_seconds
        )
        service = await asyncio.to_thread(stack.enter_context, starting)
        async with (
            Orchestrator(service.base) as orchestrator,
            asyncio.TaskGroup() as tasks,
        ):  # each request connects anew
            await wait_until(partial(ready, orchestrator))
            began = monotonic()
            tasks.create_task(asyncio.to_thread(stack.close))
            await wait_until(lambda: draining(orchestrator))
            assert await orchestrator.to_run("batch") == ["spellcheck", "ai_feedback"]
            assert (await orchestrator.complete("batch", "spellcheck")).status == 200
            assert await orchestrator.to_run("batch") == ["ai_feedback"]
            assert await draining(orchestrator)
            await wait_until(lambda: refused(orchestrator))
            assert monotonic() - began >= drain_seconds


async def ready(orchestrator: Orchestrator) -> bool:
    return (await orchestrator.get("/readyz")).status == 200


async def draining(orchestrator: Orchestrator) -> bool:
    answer = await orchestrator.get("/readyz")
    if answer.status == 200:
        return False
    assert answer.status == 503
    assert answer.json["type"] == "urn:bcs:problem:draining"
    return True


async def refused(orchestrator: Orchestrator) -> bool:
    try:
        await orchestrator.get("/healthz")
    except aiohttp.ClientConnectionError:
        return True
    return False
