"""A client that is closed over TLS does not wait for the farewell of its server, and leaves no connection open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import anyio
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest

from bcs.config.loading import load_settings
from bcs.devtools.servers import embedded
from bcs.kafka.clients import KafkaClients
from bcs.storage.redis.gateway import RedisGateway
from tests.support.certificates import Authority
from tests.support.silent_tls import SilentTls
from tests.support.waiting import wait_until

# Half of what a connection waits for the other side's goodbye, and much on a busy machine.
AT_ONCE_SECONDS = 15.0
LOOPS = pytest.mark.parametrize(
    "uvloop", [pytest.param(True, id="uvloop"), pytest.param(False, id="asyncio", marks=pytest.mark.release)]
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def silent_kafka(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SilentTls]:
    front = SilentTls(authority.issue("kafka"))
    directory = tmp_path_factory.mktemp("kafka")
    with embedded.kafka(directory, advertised_port=front.port) as server, front.to(server.port):
        yield front


@pytest.fixture(scope="module")
def silent_redis(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SilentTls]:
    front = SilentTls(authority.issue("redis"))
    with embedded.valkey(tmp_path_factory.mktemp("redis")) as server, front.to(server.port):
        yield front


def run(front: SilentTls, uvloop: bool, work: Callable[[], Awaitable[None]]) -> None:
    """Run work, which closes what it opens, in an event loop of its own."""

    async def checked() -> None:
        try:
            await work()
            await wait_until(lambda: front.accepted and not front.connections_open, AT_ONCE_SECONDS)
        finally:
            front.cut()  # the loop of uvloop would wait for an open TLS connection for good when it is closed
            await wait_until(lambda: not front.connections_open)

    anyio.run(checked, backend_options={"use_uvloop": uvloop})


def kafka_client(front: SilentTls, authority: Authority, **options: object) -> AIOKafkaClient:
    settings = load_settings(
        kafka_bootstrap_servers=front.address,
        kafka_security_protocol="SSL",
        kafka_ssl_cafile=authority.certificate,
    )
    return AIOKafkaClient(**KafkaClients.of(settings).options(), **options)


async def in_use(client: AIOKafkaClient) -> None:
    """Connect it to its broker."""
    await client.bootstrap()
    [broker] = client.cluster.brokers()
    await client.send(broker.nodeId, MetadataRequest([]))


@LOOPS
def test_a_closed_client_of_kafka_leaves_no_connection(
    silent_kafka: SilentTls, authority: Authority, uvloop: bool
) -> None:
    async def work() -> None:
        client = kafka_client(silent_kafka, authority)
        await in_use(client)
        with anyio.fail_after(AT_ONCE_SECONDS):
            await client.close()

    run(silent_kafka, uvloop, work)


@LOOPS
def test_a_client_of_kafka_whose_close_is_cancelled_leaves_no_connection(
    silent_kafka: SilentTls, authority: Authority, uvloop: bool
) -> None:
    async def work() -> None:
        client = kafka_client(silent_kafka, authority)
        await in_use(client)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.close()
        await client.close()

    run(silent_kafka, uvloop, work)


@LOOPS
def test_a_connection_to_kafka_that_was_idle_is_closed_at_once(
    silent_kafka: SilentTls, authority: Authority, uvloop: bool
) -> None:
    async def work() -> None:
        client = kafka_client(silent_kafka, authority, connections_max_idle_ms=50)
        await in_use(client)
        await wait_until(lambda: silent_kafka.connections_open == 0, AT_ONCE_SECONDS)
        await client.close()

    run(silent_kafka, uvloop, work)


@LOOPS
def test_a_closed_client_of_redis_leaves_no_connection(
    silent_redis: SilentTls, authority: Authority, uvloop: bool
) -> None:
    async def work() -> None:
        url = f"rediss://{silent_redis.address}?ssl_ca_certs={authority.certificate}"
        gateway = RedisGateway(url, max_connections=4, deadline_seconds=10, breaker_failures=5, breaker_open_seconds=1)
        await gateway.call(("PING",))
        await gateway.call_multiplexed(("PING",))
        with suppress(RuntimeError):
            async with gateway.session() as session:
                await session.call(("PING",))
                raise RuntimeError  # the connection is dropped
        with anyio.fail_after(AT_ONCE_SECONDS):
            await gateway.aclose()

    run(silent_redis, uvloop, work)
