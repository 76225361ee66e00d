"""Entries of a dead replica or of another program, beside a publisher that is always busy."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.outbox import RedisOutbox
from bcs.storage.redis.stream_layouts import stream_key
from bcs.wire import topics
from bcs.wire.published import OutboundMessage
from tests.support.kafka import Platform
from tests.support.redis_queues import redis_outbox
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

NUMBERS = itertools.count()
FRESH = 1000  # at least so many wait at any time
LIMIT = 100_000


@pytest.fixture
def replica(gateway: RedisGateway, redis_key_prefix: str) -> Callable[[str], RedisOutbox]:
    return lambda name: redis_outbox(gateway, redis_key_prefix, consumer=name, limit=LIMIT)


def messages(topic: str, key: str, count: int) -> list[OutboundMessage]:
    # No two are the same: the outbox would take the second for a retry of the first.
    return [
        OutboundMessage("phase_skipped", topic, key.encode(), b'{"number":%d}' % next(NUMBERS)) for _ in range(count)
    ]


async def test_a_dead_replica_s_entries_are_published_beside_new_entries(
    redis_url: str,
    redis_key_prefix: str,
    kafka_bootstrap_servers: str,
    replica: Callable[[str], RedisOutbox],
    unique_name: Callable[[str], str],
) -> None:
    dead, writer, key = replica("dead"), replica("writer"), unique_name("key")
    left = messages(topics.PHASE_SKIPPED, key, 20)
    await dead.append(left)
    assert len(await dead.lease(100)) == len(left)
    least = LIMIT
    enough = False

    async def keep_coming() -> None:
        nonlocal least
        while not enough:
            least = min(least, await writer.backlog())
            if await writer.backlog() < FRESH * 4:
                await writer.append(messages(topics.dead_letter_topic(topics.CJ_COMPLETED), "fresh", FRESH))

    async with Platform(kafka_bootstrap_servers) as platform:

        async def published() -> bool:
            return len(await platform.messages(topics.PHASE_SKIPPED, key)) >= len(left)

        await writer.append(messages(topics.dead_letter_topic(topics.CJ_COMPLETED), "fresh", FRESH * 4))
        async with (
            asyncio.TaskGroup() as tasks,
            running_service(
                redis_url=redis_url,
                redis_key_prefix=redis_key_prefix,
                kafka_bootstrap_servers=kafka_bootstrap_servers,
                outbox_takeover_seconds=1.0,
            ),
        ):
            tasks.create_task(keep_coming())
            try:
                await wait_until(published)
            finally:
                enough = True
        records = await platform.messages(topics.PHASE_SKIPPED, key)
    assert least > FRESH, "it never ran out of fresh ones"
    assert {record.value for record in records} == {message.value for message in left}


async def test_an_entry_of_another_program_is_parked_and_blocks_nothing(
    redis_url: str,
    redis_key_prefix: str,
    kafka_bootstrap_servers: str,
    gateway: RedisGateway,
    replica: Callable[[str], RedisOutbox],
    unique_name: Callable[[str], str],
) -> None:
    writer, key, stream = replica("writer"), unique_name("key"), stream_key(redis_key_prefix, 7)
    async with (
        Platform(kafka_bootstrap_servers) as platform,
        running_service(
            redis_url=redis_url, redis_key_prefix=redis_key_prefix, kafka_bootstrap_servers=kafka_bootstrap_servers
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        before, after = messages(topics.PHASE_SKIPPED, key, 2)
        await writer.append([before])
        await gateway.call(("XADD", stream, "*", "foo", "bar"))
        await writer.append([after])

        async def both_published() -> bool:
            return len(await platform.messages(topics.PHASE_SKIPPED, key)) == 2

        await wait_until(both_published)

        async def empty() -> bool:
            return await writer.backlog() == 0

        await wait_until(empty)
        [[(_, fields)]] = await gateway.call(("XRANGE", f"{stream}:parked", "-", "+"))
        parked = dict(zip(fields[::2], fields[1::2], strict=True))
        assert b"bar" in b" ".join(parked.values()), "it can still be looked at"
        assert await orchestrator.metric("bcs_actor_restarts_total", actor="publisher") in (None, 0)
