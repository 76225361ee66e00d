"""The cause of a dependency's failure is one line with the address, the reason and the remedy."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer, errors
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from bcs.config.addresses import redis_address
from bcs.config.store_urls import database_url
from bcs.errors import KafkaUnavailable, StoreUnavailable, os_reason
from bcs.kafka.causes import ProducerRefused, cause_of, is_refusal, start
from bcs.ops.dlq.reading import kafka_answers
from bcs.storage.postgres.gateway import cause_of as pg_cause_of
from bcs.storage.redis.errors import unavailable

pytestmark = pytest.mark.anyio

SERVER = "127.0.0.1:9092"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            errors.TopicAuthorizationFailedError("essays"),
            ["essays", "TOPIC_AUTHORIZATION_FAILED (29)", "grant DESCRIBE"],
        ),
        (errors.GroupAuthorizationFailedError(), ["GROUP_AUTHORIZATION_FAILED", "BCS_KAFKA_CONSUMER_GROUP_ID"]),
        (errors.ClusterAuthorizationFailedError(), ["IDEMPOTENT_WRITE", "BCS_KAFKA_ENABLE_IDEMPOTENCE=false"]),
        (errors.UnknownError(), ["UNKNOWN (-1)", "the log of the broker"]),
        (errors.MessageSizeTooLargeError(), ["max.message.bytes", "BCS_KAFKA_MAX_MESSAGE_BYTES"]),
        (errors.PolicyViolationError(), ["POLICY_VIOLATION", "policy"]),
        (errors.UnsupportedCodecError("the compression codec 7 is unknown"), ["codec 7"]),
        (ExceptionGroup("tasks", [TimeoutError()]), ["no answer in time"]),
    ],
)
def test_a_cause_of_kafka_names_what_mends_it(error: Exception, said: list[str]) -> None:
    cause = cause_of(error)
    assert all(text in cause for text in said), cause
    assert "\n" not in cause
    assert type(error).__name__ not in cause.replace("UnsupportedCodecError", "")


@pytest.mark.parametrize("refused", [True, False])
def test_what_a_broker_refuses_is_not_out_of_reach(refused: bool) -> None:
    error = errors.TopicAuthorizationFailedError() if refused else errors.KafkaConnectionError("connection refused")
    with pytest.raises(KafkaUnavailable) as raised, kafka_answers():
        raise error
    assert is_refusal(error) is raised.value.answered is refused
    assert str(raised.value).startswith("kafka refuses: " if refused else "kafka is out of reach: ")


class RefusedClient:
    """A client to which a broker refuses an idempotent producer."""

    async def start(self) -> None:
        raise errors.UnknownError


async def test_a_refused_idempotent_producer_names_its_setting_and_address() -> None:
    with pytest.raises(ProducerRefused) as raised:
        await start(RefusedClient(), SERVER, 1.0, idempotent=True)
    for text in (SERVER, "BCS_KAFKA_BOOTSTRAP_SERVERS", "UNKNOWN (-1)", "BCS_KAFKA_ENABLE_IDEMPOTENCE=false"):
        assert text in cause_of(raised.value)


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nothing listens there, and nobody else gets the port
        yield held.getsockname()[1]


async def test_a_broker_that_is_not_there_is_named_with_the_reason(closed_port: int) -> None:
    server = f"127.0.0.1:{closed_port}"
    producer = AIOKafkaProducer(bootstrap_servers=server)
    try:
        with pytest.raises(errors.KafkaConnectionError) as raised:
            await start(producer, server, 5.0)
    finally:
        await producer.stop()
    assert cause_of(raised.value) == (f"can't connect to {server} (BCS_KAFKA_BOOTSTRAP_SERVERS): connection refused")


async def test_a_silent_listener_is_not_reported_as_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = f"127.0.0.1:{listener.getsockname()[1]}"
        producer = AIOKafkaProducer(bootstrap_servers=server)
        try:
            with pytest.raises(errors.KafkaConnectionError, match="a process listens there"):
                await start(producer, server, 0.05)
        finally:
            await producer.stop()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            NoPermissionError("NOPERM User secret has no permissions to run the 'eval' command"),
            ["'eval'", "ACL SETUSER"],
        ),
        (OutOfMemoryError("OOM command not allowed"), ["memory is full", "maxmemory"]),
        (
            ResponseError("unknown command 'XAUTOCLAIM', with args beginning with: 'secret'"),
            ["XAUTOCLAIM", "Redis 6.2"],
        ),
    ],
)
def test_what_redis_refuses_names_what_mends_it(error: Exception, said: list[str]) -> None:
    failure = unavailable(error)
    failure.address = redis_address("redis://bcs:secret@cache:6379/0")
    text = str(failure)
    assert text.startswith("redis refuses at cache:6379 (BCS_REDIS_URL): ")
    assert all(part in text for part in said), text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            asyncpg.InvalidPasswordError('password authentication failed for user "somebody"'),
            "failed for this user; put",
        ),
        (asyncpg.InsufficientPrivilegeError("permission denied for table history"), "grant"),
        (asyncpg.InvalidCatalogNameError('database "bcs" does not exist'), "create the database"),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
    ],
)
def test_what_postgresql_refuses_names_what_mends_it(error: Exception, said: str) -> None:
    url = database_url("postgresql://somebody:secret@db:5432/bcs")
    failure = StoreUnavailable("postgresql", pg_cause_of(error, url), address=url.address)
    assert str(failure).startswith("postgresql is out of reach at db:5432/bcs (BCS_DATABASE_URL): ")
    assert said in str(failure)
    assert "secret" not in str(failure)
    assert "somebody" not in str(failure)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 9)"), "Connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError("no number"), "no number"),
    ],
)
def test_the_reason_of_an_os_error_names_no_address(error: OSError, reason: str) -> None:
    assert os_reason(error) == reason
