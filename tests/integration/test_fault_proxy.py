"""The fault proxy, in front of real servers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import create_topics
from tests.support.fault_proxy import FaultProxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Redis]:
    async with Redis(port=proxy.port, retry=Retry(NoBackoff(), 0)) as client:
        yield client


def running(command: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(command)


async def is_held(answer: "asyncio.Future[Any]") -> bool:
    done, _ = await asyncio.wait({answer}, timeout=0.1)
    return not done


async def test_bytes_pass_unchanged(proxy: FaultProxy, client: Redis, redis_key_prefix: str) -> None:
    value = bytes(range(256)) * 4096
    await client.set(f"{redis_key_prefix}key", value, ex=60)
    assert await client.get(f"{redis_key_prefix}key") == value
    assert (proxy.connections_accepted, proxy.connections_open, proxy.connections_cut) == (1, 1, 0)


async def test_a_connection_ends_with_its_client(proxy: FaultProxy, client: Redis) -> None:
    await client.ping()
    await client.aclose()
    await wait_until(lambda: proxy.connections_open == 0)
    assert proxy.connections_cut == 0


async def test_cut_resets_connections_and_takes_new_ones(proxy: FaultProxy) -> None:
    reader, writer = await asyncio.open_connection(embedded.HOST, proxy.port)
    writer.write(b"PING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    await proxy.cut()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()
    assert (proxy.connections_open, proxy.connections_cut) == (0, 1)
    async with Redis(port=proxy.port) as client:
        assert await client.ping()


async def test_refuse_lets_open_connections_live(proxy: FaultProxy, client: Redis) -> None:
    await client.ping()
    port = proxy.port
    proxy.refuse()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(embedded.HOST, port)
    assert await client.ping()
    proxy.accept()
    async with Redis(port=port) as other:
        assert await other.ping()


async def test_a_frozen_proxy_holds_every_byte(proxy: FaultProxy, client: Redis, redis_key_prefix: str) -> None:
    await client.ping()
    proxy.freeze()
    open_before = running(client.incr(f"{redis_key_prefix}count"))
    async with Redis(port=proxy.port) as other:
        opened_since = running(other.ping())
        assert await is_held(open_before)
        assert not opened_since.done()
        proxy.thaw()
        assert await open_before == 1
        assert await opened_since


async def test_the_bytes_of_one_address_can_be_held_alone(proxy: FaultProxy, client: Redis) -> None:
    await client.ping()
    proxy.freeze_from("127.0.0.9")
    reader, writer = await asyncio.open_connection(embedded.HOST, proxy.port, local_addr=("127.0.0.9", 0))
    writer.write(b"PING\r\n")
    held = running(reader.readline())
    assert await is_held(held)
    assert await client.ping()
    proxy.thaw()
    assert await held == b"+PONG\r\n"
    writer.close()


async def test_a_frozen_proxy_holds_up_the_sender(proxy: FaultProxy) -> None:
    proxy.freeze()
    _, writer = await asyncio.open_connection(embedded.HOST, proxy.port)
    writer.write(bytes(64 * 1024 * 1024))
    drained = running(writer.drain())
    assert await is_held(drained)
    drained.cancel()
    writer.transport.abort()


async def test_a_reply_is_delayed_and_the_request_is_not(
    proxy: FaultProxy, client: Redis, redis_url: str, redis_key_prefix: str
) -> None:
    await client.ping()
    proxy.delay(3600)
    answer = running(client.incr(f"{redis_key_prefix}count"))
    async with Redis.from_url(redis_url) as direct:
        await wait_until(lambda: direct.get(f"{redis_key_prefix}count"))
    assert await is_held(answer)
    proxy.delay(0.05)
    assert await answer == 1
    loop = asyncio.get_running_loop()
    before = loop.time()
    await client.ping()
    assert loop.time() - before >= 0.05


async def test_a_reply_is_lost_after_exec_and_the_write_has_happened(
    proxy: FaultProxy, client: Redis, redis_key_prefix: str
) -> None:
    key = f"{redis_key_prefix}count"
    proxy.drop_replies(after_request_matching=b"EXEC", count=2)
    for _ in range(2):
        assert await client.ping()
        async with client.pipeline(transaction=True) as pipeline:
            pipeline.incr(key)
            with pytest.raises(RedisConnectionError):
                await pipeline.execute()
    assert await client.get(key) == b"2"
    assert (proxy.replies_dropped, proxy.connections_cut) == (2, 2)


async def test_the_request_is_recognised_across_chunks(proxy: FaultProxy) -> None:
    proxy.drop_replies(after_request_matching=b"PING")
    reader, writer = await asyncio.open_connection(embedded.HOST, proxy.port)
    writer.write(b"ECHO a\r\nPI")
    assert [await reader.readline(), await reader.readline()] == [b"$1\r\n", b"a\r\n"]
    writer.write(b"NG\r\n")
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()
    assert proxy.replies_dropped == 1


async def test_the_reply_to_any_request_can_be_lost(proxy: FaultProxy, client: Redis) -> None:
    await client.ping()
    proxy.drop_replies(after_request_matching=None)
    with pytest.raises(RedisConnectionError):
        await client.ping()
    assert await client.ping()


async def test_a_dead_target_is_felt_as_a_reset(free_port: int) -> None:
    async with FaultProxy(embedded.HOST, free_port) as proxy:
        reader, writer = await asyncio.open_connection(embedded.HOST, proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


async def test_leaving_closes_what_is_open_frozen_or_held(redis_url: str) -> None:
    target = urlsplit(redis_url)
    async with Redis(retry=Retry(NoBackoff(), 0)) as client:
        async with FaultProxy(target.hostname or "localhost", target.port or 6379) as proxy:
            client.connection_pool.connection_kwargs["port"] = proxy.port
            await client.ping()
            proxy.delay(3600)
            held = running(client.ping())
            assert await is_held(held)
            proxy.freeze()
        with pytest.raises(RedisConnectionError):
            await held
    assert proxy.connections_open == 0


async def test_a_broker_behind_the_proxy(tmp_path: Path, free_port: int, unique_name: Callable[[str], str]) -> None:
    topic = unique_name("topic")
    with embedded.kafka(tmp_path, advertised_port=free_port) as server:
        async with FaultProxy(embedded.HOST, server.port, listen_port=free_port) as proxy:
            await create_topics(proxy.address, [topic], partitions=1)
            async with AIOKafkaProducer(bootstrap_servers=proxy.address, retry_backoff_ms=20) as producer:
                await producer.send_and_wait(topic, b"first")
                await proxy.cut()
                await producer.send_and_wait(topic, b"second")
            assert proxy.connections_cut >= 1


async def test_waiting_returns_the_first_truthy_answer() -> None:
    answers = iter([0, 0, 3])
    assert await wait_until(lambda: next(answers)) == 3


async def test_waiting_tells_what_was_awaited_and_the_last_answer() -> None:
    def unreachable() -> bool:
        raise ConnectionError("nobody there")

    with pytest.raises(AssertionError, match=r"not within 0.02 s: the store is back; last: .*nobody there"):
        await wait_until(unreachable, 0.02, description="the store is back", ignoring=(ConnectionError,))
    with pytest.raises(ConnectionError):
        await wait_until(unreachable)
    with pytest.raises(AssertionError, match=r"lambda: asyncio.Event\(\).wait\(\)"):
        await wait_until(lambda: asyncio.Event().wait(), 0.02)
