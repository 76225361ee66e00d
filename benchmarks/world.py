"""Servers, the service and the floor, each a process of its own, for as long as a benchmark takes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from aiohttp import ClientError

from bcs.config.pipelines import load_pipelines
from bcs.config.redis_servers import RedisKind
from bcs.config.store_urls import redis_url
from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import EmbeddedServer, create_topics, free_port
from bcs.devtools.servers.postgres import PostgresServer
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Outcome, PhaseReported
from bcs.domain.state import delta_of
from bcs.errors import StoreUnavailable
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.cluster import ClusterNodes
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.stream_layouts import small_calls
from bcs.wire import topics
from benchmarks.usage import ServersCpu, cpu_seconds, family_cpu_seconds, process_id_of
from tests.support.apache_kafka import apache_kafka
from tests.support.events import spellchecked
from tests.support.kafka import PARTITIONS, Platform
from tests.support.redis_queues import queue_keys
from tests.support.service import BcsProcess, Orchestrator, serve
from tests.support.waiting import wait_until

KEY_PREFIX, GROUP = "bench:", "bench"
_DRAINED_SECONDS = 120.0
_WRITERS = 8
# The embedded broker lets a group begin after half a session, so it is no longer than it must be.
_SHORTEST_SESSION_SECONDS = 3.0
_SLOWEST_EVENTS_A_SECOND = 3_000


@dataclass(frozen=True)
class Server:
    """One of the servers that the service is compared with."""

    process: subprocess.Popen[bytes]
    port: int


@dataclass(frozen=True)
class Redis:
    """One server, or the masters of a cluster.

    :param url: as in `BCS_REDIS_URL`.
    """

    url: str
    servers: Sequence[EmbeddedServer]

    def cpu_seconds(self) -> list[float]:
        """What each server has used."""
        return [cpu_seconds(process_id_of(server)) for server in self.servers]


@dataclass(frozen=True)
class World:
    """Everything that takes part.

    :param broker: which Kafka it is.
    :param nodes: the benchmark's own connections to Redis.
    :param postgres: what has the permanent record; None where there is none.
    :param start_seconds: from the start of the service's process until it was ready.
    :param events: so many may be told while a replica stands still.
    """

    redis: Redis
    postgres: EmbeddedServer | None
    kafka: EmbeddedServer
    broker: str
    service: BcsProcess
    floor: Server
    canned: Server
    platform: Platform
    nodes: Nodes
    store: RedisStateStore
    start_seconds: float
    directory: Path
    events: int

    @property
    def port(self) -> int:
        """Where the service listens."""
        return int(self.service.environment["BCS_HTTP_PORT"])

    def servers_cpu(self) -> ServersCpu:
        """What the servers behind the service have used."""
        postgres = family_cpu_seconds(process_id_of(self.postgres)) if self.postgres else None
        return ServersCpu(self.redis.cpu_seconds(), postgres)

    async def settled(self) -> None:
        """Wait until nothing waits to be published or recorded."""
        queues = [key for behind in ("", ":archive", ":explanations") for key in queue_keys(KEY_PREFIX, behind)]

        async def empty() -> bool:
            failing: dict[str, StoreUnavailable] = {}
            lengths = await small_calls(self.nodes, {queue: [("XLEN", queue)] for queue in queues}, failing)
            return not failing and not any(length for [length] in lengths.values())

        await wait_until(empty, _DRAINED_SECONDS)

    async def know(self, batch_id: str, essays: int, *, spellchecked: bool) -> None:
        """Put a batch into the store, past the service."""
        ids = tuple(f"{number:08x}-6f2c-4d3a-9b1e-5c7d8e9f0a1b" for number in range(essays))
        facts: list[EssaysRegistered | EssayPhaseEnded | PhaseReported] = [EssaysRegistered(ids, essays, 1)]
        if spellchecked:
            facts += [EssayPhaseEnded("spellcheck", essay, Outcome.COMPLETED, 1_764_000_000_000_000) for essay in ids]
        await self.store.commit(batch_id, delta_of(facts))

    async def know_many(self, name: str, batches: int, essays: int, *, spellchecked: bool = False) -> None:
        """Put batches into the store, whose ids are the name and twelve digits."""
        numbers = iter(range(batches))

        async def tell() -> None:
            for number in numbers:
                await self.know(f"{name}-{number:012}", essays, spellchecked=spellchecked)

        async with anyio.create_task_group() as group:
            for _ in range(_WRITERS):
                group.start_soon(tell)


@asynccontextmanager
async def built(
    directory: Path,
    events: int,
    apache_jars: Path | None = None,
    postgres: PostgresServer | None = None,
    redis: Redis | None = None,
) -> AsyncIterator[World]:
    """Start everything, and end it.

    :param events: so many may be told while the service stands still, and must not throw it out of its group.
    :param apache_jars: with these, the broker is Apache Kafka instead of the embedded one.
    :param postgres: a server that runs, for the permanent record.
    :param redis: servers that run; one is started where it is None.
    """
    async with AsyncExitStack() as stack:
        if redis is None:
            valkey = stack.enter_context(embedded.valkey(directory / "valkey"))
            redis = Redis(f"redis://{valkey.address}", [valkey])
        broker = (
            stack.enter_context(apache_kafka(apache_jars, directory / "kafka"))
            if apache_jars
            else stack.enter_context(embedded.kafka(directory / "kafka"))
        )
        await create_topics(broker.address, [*topics.CONSUMED, *topics.PUBLISHED], PARTITIONS)
        nodes = nodes_of(redis)
        stack.push_async_callback(nodes.aclose)
        law = load_pipelines(None).law(require_registration=False)
        store = RedisStateStore(nodes, law=law, key_prefix=KEY_PREFIX, ttl_seconds=604_800)
        floor, canned = stack.enter_context(_server("floor")), stack.enter_context(_server("canned"))
        began = time.perf_counter()
        service = stack.enter_context(replica(directory / "service", redis, broker, postgres, events))
        await service.answers()
        start_seconds = time.perf_counter() - began
        platform = await stack.enter_async_context(Platform(broker.address))
        world = World(
            redis,
            postgres,
            broker,
            "Apache Kafka" if apache_jars else "Tansu",
            service,
            floor,
            canned,
            platform,
            nodes,
            store,
            start_seconds,
            directory,
            events,
        )
        for server in (floor, canned):
            await _answers(server)
        # Until then nothing is assigned to the service: to join a group takes the embedded broker some seconds.
        await platform.send(spellchecked("first", "essay"))
        await wait_until(lambda: platform.caught_up(GROUP), _DRAINED_SECONDS)
        yield world


def nodes_of(redis: Redis) -> Nodes:
    """The benchmark's own connections to Redis, as patient as a slow machine needs them."""
    url = redis_url(redis.url)
    kind = ClusterNodes if url.servers.kind is RedisKind.CLUSTER else RedisGateway
    return kind(url, max_connections=8, deadline_seconds=30, breaker_failures=1_000_000, breaker_open_seconds=0.01)


def replica(
    directory: Path,
    redis: Redis,
    broker: EmbeddedServer,
    postgres: PostgresServer | None,
    events: int,
    **settings: object,
) -> BcsProcess:
    """A process of the service.

    :param events: so many may be told while it stands still, and must not throw it out of its group.
    :param settings: variables that differ from the usual ones.
    """
    usual = {
        "BCS_REDIS_KEY_PREFIX": KEY_PREFIX,
        "BCS_KAFKA_CONSUMER_GROUP_ID": GROUP,
        "BCS_KAFKA_SESSION_TIMEOUT_SECONDS": _SHORTEST_SESSION_SECONDS + events / _SLOWEST_EVENTS_A_SECOND,
        "BCS_KAFKA_HEARTBEAT_INTERVAL_SECONDS": 1,
        "BCS_METRICS_INTERVAL_SECONDS": 1,
        "BCS_ENVIRONMENT": "production",
        "PYTHONWARNINGS": "default",
        **({"BCS_DATABASE_URL": postgres.url} if postgres else {}),
    }
    return serve(directory, redis.url, broker.address, forked=False, **{**usual, **settings})


@asynccontextmanager
async def with_settings(world: World, name: str, **settings: object) -> AsyncIterator[Server]:
    """One more process of the service, for questions: it reads no event of the others' group.

    :param name: names its directory and its consumer group.
    :param settings: variables that differ from the usual ones.
    """
    own = {"BCS_KAFKA_CONSUMER_GROUP_ID": f"{GROUP}-{name}", "BCS_KAFKA_AUTO_OFFSET_RESET": "latest", **settings}
    with replica(world.directory / name, world.redis, world.kafka, None, world.events, **own) as process:
        await process.answers()
        assert isinstance(process.process, subprocess.Popen)  # noqa: S101 (it is not forked)
        yield Server(process.process, int(process.environment["BCS_HTTP_PORT"]))


@contextmanager
def _server(module: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", f"benchmarks.{module}", str(port)]
    with subprocess.Popen(command) as process:  # noqa: S603 (our own)
        try:
            yield Server(process, port)
        finally:
            process.kill()


async def _answers(server: Server) -> None:
    async def ready() -> bool:
        async with Orchestrator(f"http://127.0.0.1:{server.port}") as caller:
            return (await caller.define("any")).status == 200

    await wait_until(ready, ignoring=(ClientError,))
