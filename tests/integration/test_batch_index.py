"""The index of the batches in Redis: written together, bounded, and without batches that have expired."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from itertools import count

import anyio
import pytest
from anyio.lowlevel import checkpoint
from redis.asyncio import Redis

from bcs.storage.batch_index import WINDOW_US
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_index import SHARDS, RedisBatchIndex, index_key
from bcs.storage.redis.nodes import Nodes
from tests.integration.stores import MakeGateway
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_cluster import RedisCluster

pytestmark = pytest.mark.anyio

TTL_SECONDS = 1000


class Clock:
    def __init__(self) -> None:
        self.now_us = time.time_ns() // 1000

    def __call__(self) -> int:
        return self.now_us


def index_on(nodes: Nodes, prefix: str, clock: Callable[[], int], most: int = 10**6) -> RedisBatchIndex:
    return RedisBatchIndex(nodes, key_prefix=prefix, ttl_seconds=TTL_SECONDS, max_batches=most, now_us=clock)


async def all_places(index: RedisBatchIndex, limit: int) -> list[str]:
    """The batches of all pages, from the last changed to the first, and then back again."""
    back: list[str] = []
    scan = await index.before(None, lowest_us=0, limit=limit)
    back += [one.place.batch_id for one in scan.batches]
    first = scan.batches[0].place if scan.batches else None
    last = first
    while not scan.ended:
        last = scan.batches[-1].place
        scan = await index.before(last, lowest_us=0, limit=limit)
        assert len(scan.batches) <= limit
        back += [one.place.batch_id for one in scan.batches]
    if scan.batches:
        last = scan.batches[-1].place
    if last is not None:
        on = [last.batch_id]
        scan = await index.after(last, limit=limit)
        on += [one.place.batch_id for one in scan.batches]
        while not scan.ended:
            scan = await index.after(scan.batches[-1].place, limit=limit)
            on += [one.place.batch_id for one in scan.batches]
        assert on == back[::-1]
    return back


async def stored(redis: Redis, prefix: str) -> list[str]:
    names: list[bytes] = []
    for shard in range(SHARDS):
        names += await redis.zrange(index_key(prefix, shard), 0, -1)  # type: ignore[arg-type]
    return [name.decode() for name in names]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as redis:
        yield redis


async def test_pages_have_all_batches_in_order(
    make_gateway: MakeGateway, redis: Redis, redis_url: str, redis_key_prefix: str
) -> None:
    clock, names = Clock(), [f"batch-{number}" for number in range(150)]
    index = index_on(make_gateway(redis_url), redis_key_prefix, clock)
    for name in names:
        await redis.set(BatchKeys(redis_key_prefix, name).facts, 1, ex=TTL_SECONDS)
        index.note(name)
        index.note(name)
    await index.flush()
    assert await all_places(index, 100) == names[::-1]
    assert await all_places(index, 7) == names[::-1]
    # Only after a while a batch gets another place.
    index.note(names[0])
    await index.flush()
    assert (await all_places(index, 500))[0] == names[-1]
    clock.now_us += WINDOW_US
    index.note(names[0])
    await index.flush()
    assert (await all_places(index, 500))[:2] == [names[0], names[-1]]


async def test_a_batch_that_has_expired_leaves_the_index_when_it_is_read(
    make_gateway: MakeGateway, redis: Redis, redis_url: str, redis_key_prefix: str
) -> None:
    index = index_on(make_gateway(redis_url), redis_key_prefix, Clock())
    await redis.set(BatchKeys(redis_key_prefix, "there").facts, 1, ex=TTL_SECONDS)
    index.note("there")
    index.note("gone")
    await index.flush()
    assert sorted(await stored(redis, redis_key_prefix)) == ["gone", "there"]
    await index.before(None, lowest_us=0, limit=10)
    assert await stored(redis, redis_key_prefix) == ["there"]


async def test_old_batches_and_too_many_batches_are_removed(
    make_gateway: MakeGateway, redis: Redis, redis_url: str, redis_key_prefix: str
) -> None:
    clock = Clock()
    index = index_on(make_gateway(redis_url), redis_key_prefix, clock, most=SHARDS * 3)
    for number in range(50):
        index.note(f"old-{number}")
    clock.now_us += (TTL_SECONDS + 60) * 1_000_000
    for number in range(200):
        index.note(f"new-{number}")
    for _ in range(3):
        await index.flush()
    left = await stored(redis, redis_key_prefix)
    assert len(left) <= SHARDS * 3
    assert all(name.startswith("new-") for name in left)


async def test_what_redis_does_not_take_is_written_later(
    make_gateway: MakeGateway, redis: Redis, proxy: FaultProxy, redis_key_prefix: str
) -> None:
    index = index_on(make_gateway(f"redis://{proxy.address}"), redis_key_prefix, Clock())
    index.note("first")
    proxy.refuse()
    await proxy.cut()
    await index.flush()
    index.note("second")
    proxy.accept()
    await index.flush()
    assert sorted(await stored(redis, redis_key_prefix)) == ["first", "second"]


async def test_what_is_noted_during_a_flush_waits_for_the_next_one(
    make_gateway: MakeGateway, redis: Redis, redis_url: str, redis_key_prefix: str
) -> None:
    index = index_on(make_gateway(redis_url), redis_key_prefix, Clock())
    index.note("before")

    async def note_all_the_time() -> None:
        for number in count():
            index.note(f"meanwhile-{number}")
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(note_all_the_time)
        with anyio.fail_after(20):
            await index.flush()
        group.cancel_scope.cancel()
    assert "before" in await stored(redis, redis_key_prefix)
    await index.flush()
    assert "meanwhile-0" in await stored(redis, redis_key_prefix)


@pytest.mark.release
async def test_the_index_is_spread_over_a_cluster(
    make_gateway: MakeGateway, redis_cluster: RedisCluster, redis_key_prefix: str
) -> None:
    nodes = make_gateway(redis_cluster.url, deadline=5.0)
    index = index_on(nodes, redis_key_prefix, Clock())
    names = [f"batch-{number}" for number in range(60)]
    for name in names:
        key = BatchKeys(redis_key_prefix, name).facts
        await nodes.at(key).call(("SET", key, 1, "EX", TTL_SECONDS))
        index.note(name)
    await index.flush()
    assert await all_places(index, 7) == names[::-1]
    servers = {nodes.at(index_key(redis_key_prefix, shard)).address for shard in range(SHARDS)}
    assert len(servers) > 1
