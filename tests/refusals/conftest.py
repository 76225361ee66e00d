"""The servers of these tests; PostgreSQL and Kafka are started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bcs.devtools.servers.embedded import EmbeddedServer, free_port
from bcs.devtools.servers.postgres import PostgresServer, postgres
from tests.support import apache_kafka as apache
from tests.support.databases import database


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL to be killed and frozen."""
    with postgres(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


@pytest.fixture
def own_database(own_postgres: PostgresServer) -> Iterator[tuple[PostgresServer, str]]:
    """The same, with the URL of an empty database."""
    own_postgres.thaw()
    own_postgres.start()
    with database(own_postgres.url) as url:
        yield own_postgres, url
        own_postgres.thaw()
        own_postgres.start()


@pytest.fixture(scope="module")
def own_kafka(
    apache_kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EmbeddedServer, int]]:
    """An Apache Kafka to be killed and frozen, with the port that it advertises."""
    advertised = free_port()
    server = apache.apache_kafka(
        apache_kafka_jars,
        tmp_path_factory.mktemp("kafka"),
        advertised_port=advertised,
        broker_session_timeout_ms=1500,
        authorizer_class_name="org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        allow_everyone_if_no_acl_found="true",
    )
    with server:
        yield server, advertised
