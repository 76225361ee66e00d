"""A listener that is no Kafka broker, or another one than expected, is described by what it does."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed

from bcs.config.loading import load_settings
from bcs.kafka.causes import bootstrap, cause_of
from bcs.kafka.clients import KafkaClients
from bcs.kafka.connecting import CredentialsUnusable, NotConnected, source_of
from bcs.kafka.connection_problems import known_problem
from tests.support.secured_kafka import SecuredKafka, server_context

pytestmark = pytest.mark.anyio

CHECK = "check BCS_KAFKA_SASL_USERNAME and BCS_KAFKA_SASL_PASSWORD"

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> SecuredKafka:
    return SecuredKafka(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def listener(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behaviour(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def talks_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def cause(settings: dict[str, object]) -> str:
    clients = KafkaClients.of(load_settings(**settings))
    client = AIOKafkaClient(**clients.options(), request_timeout_ms=500)
    try:
        with pytest.raises(KafkaConnectionError) as raised:
            await bootstrap(client, clients.servers)
        return cause_of(raised.value)
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("behaviour", "protocol", "tls"),
    [(closes, "PLAINTEXT", False), (talks_http, "SSL", False), (talks_http, "SSL", True)],
)
async def test_what_is_no_broker_is_called_so(
    secured: SecuredKafka, behaviour: Behaviour, protocol: str, tls: bool
) -> None:
    async with listener(behaviour, server_context(secured) if tls else None) as address:
        settings = {"kafka_bootstrap_servers": address, "kafka_security_protocol": protocol}
        ca = {"kafka_ssl_cafile": secured.file("ca.pem")} if protocol == "SSL" else {}
        assert "is not a Kafka broker" in await cause({**settings, **ca})


async def test_a_certificate_that_is_gone_is_named_when_a_client_connects(secured: SecuredKafka) -> None:
    ca = secured.file("passing-ca.pem")
    ca.write_bytes(secured.file("ca.pem").read_bytes())
    clients = KafkaClients.of(load_settings(**secured.login(kafka_ssl_cafile=ca)))
    ca.unlink()
    client = AIOKafkaClient(**clients.options())
    with pytest.raises(KafkaConnectionError, match="BCS_KAFKA_SSL_CAFILE can't be read: No such file"):
        await bootstrap(client, clients.servers)
    source = source_of(client)
    assert source is not None
    assert "BCS_KAFKA_SSL_CAFILE" in cause_of(NotConnected(source.failures, source.security))
    await client.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "the host name is unknown"),
        (ConnectionRefusedError(111, "Connect call failed"), "connection refused"),
        (CredentialsUnusable("BCS_KAFKA_SSL_CAFILE is empty"), "BCS_KAFKA_SSL_CAFILE is empty"),
        (
            SaslAuthenticationFailed("no\n\x1b[31msuch   user"),
            f"the broker does not accept the login; {CHECK}: no [31msuch user",
        ),
        (ConnectionResetError(104, "reset"), None),
        (TimeoutError(), None),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), None),
    ],
)
async def test_an_error_that_shows_no_cause_leaves_it_to_the_listener(
    secured: SecuredKafka, error: Exception, said: str | None
) -> None:
    assert known_problem(error, "kafka", load_settings(**secured.login()).kafka_security) == said
