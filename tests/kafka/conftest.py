"""The brokers of these tests: one that they share, which may be any, and one of ours, to be killed and configured."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from bcs.devtools.servers.embedded import HOST, EmbeddedServer, create_topics, free_port
from bcs.wire import topics
from tests.chaos.replica_tap import between
from tests.kafka.services import LATE_TOPIC, LostAnswers, OwnKafka
from tests.support import apache_kafka as apache
from tests.support.kafka import PARTITIONS, assert_partitions, create_platform_topics
from tests.support.secured_kafka import SecuredKafka

_LIMIT_BYTES = 100_000


@pytest.fixture(scope="session")
def kafka(shared_kafka: str) -> str:
    """The broker that these tests share, with the platform's topics."""
    anyio.run(create_platform_topics, shared_kafka)
    anyio.run(assert_partitions, shared_kafka)
    return shared_kafka


@pytest.fixture(scope="module")
def kafka_to_empty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The broker that these tests share, since its dead letters may be deleted; one of our own beside a named one."""
    if not os.environ.get("BCS_TEST_KAFKA_BOOTSTRAP_SERVERS"):
        shared: str = request.getfixturevalue("kafka")
        yield shared
        return
    jars: Path = request.getfixturevalue("apache_kafka_jars")
    with apache.apache_kafka(jars, tmp_path_factory.mktemp("kafka")) as server:
        anyio.run(create_platform_topics, server.address)
        yield server.address


@pytest.fixture(scope="session")
def _own_server(
    apache_kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EmbeddedServer, int]]:
    advertised = free_port()
    server = apache.apache_kafka(
        apache_kafka_jars,
        tmp_path_factory.mktemp("own-kafka"),
        advertised_port=advertised,
        message_max_bytes=_LIMIT_BYTES,
        # After a kill -9 the broker is let in again when the session of the one before has ended.
        broker_session_timeout_ms=1500,
        # All may do everything but what a test forbids them.
        authorizer_class_name="org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        allow_everyone_if_no_acl_found="true",
    )
    with server:
        yield server, advertised


@pytest.fixture
async def own_kafka(_own_server: tuple[EmbeddedServer, int]) -> AsyncIterator[OwnKafka]:
    """A broker to be killed, behind a proxy; it accepts only smaller messages than configured, and lacks a topic."""
    server, advertised = _own_server
    server.start()  # unless it runs: a test that failed may have left it dead
    kafka = OwnKafka(server, f"{HOST}:{advertised}", LostAnswers(), _LIMIT_BYTES)
    async with between(advertised, server.port, kafka.answers.conversation):
        await create_topics(kafka.address, sorted({*topics.CONSUMED, *topics.PUBLISHED} - {LATE_TOPIC}), PARTITIONS)
        yield kafka


@pytest.fixture
def batch(unique_name: Callable[[str], str]) -> str:
    """A name for a batch, and for a group."""
    return unique_name("batch")


@pytest.fixture(scope="session")
def secured_kafka(secured_apache_kafka: SecuredKafka) -> SecuredKafka:
    """The secured listeners of the broker that these tests share, with the platform's topics."""
    anyio.run(create_platform_topics, secured_apache_kafka.plain)
    return secured_apache_kafka
