"""Shared fixtures: a service, its callers, and the stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from bcs.config.store_urls import redis_url as url_of_redis
from bcs.devtools.servers.embedded import EmbeddedServer, valkey
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import BatchSummary
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.committing import CommitPolicy
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.stores import BREAKER_FAILURES, ClusterByKey, MakeGateway, MakeStore
from tests.support.databases import archive_in
from tests.support.fault_proxy import FaultProxy
from tests.support.kafka import Platform
from tests.support.laws import LAW
from tests.support.service import Orchestrator, RunningService, service_in_thread

NEVER = 10**6


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A store of the module's own, which may be flushed."""
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def service_settings() -> dict[str, object]:
    """The module's settings for `service` that differ from the usual ones."""
    return {}


@pytest.fixture(scope="module")
def service(
    redis_url: str, kafka_bootstrap_servers: str, service_settings: dict[str, object]
) -> Iterator[RunningService]:
    """A service that the tests of a module share: use batches of your own, see `batch`.

    It ends with the module: it starts in a tenth of a second, and an idle one takes a tenth of a core, with its broker.
    """
    usual = {"redis_url": redis_url, "kafka_bootstrap_servers": kafka_bootstrap_servers}
    with service_in_thread(**{**usual, **service_settings}) as running:
        yield running


@pytest.fixture
async def platform(kafka_bootstrap_servers: str) -> AsyncIterator[Platform]:
    """The services around this one."""
    async with Platform(kafka_bootstrap_servers) as platform:
        yield platform


@pytest.fixture
async def orchestrator(service: RunningService) -> AsyncIterator[Orchestrator]:
    """A caller of `service`."""
    async with Orchestrator(service.base) as caller:
        yield caller


@pytest.fixture
def batch(unique_name: Callable[[str], str]) -> str:
    """The id of a batch that no other test uses."""
    return unique_name("batch")


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[FaultProxy]:
    """A proxy before the store that all tests share."""
    target = urlsplit(redis_url)
    async with FaultProxy(target.hostname or "localhost", target.port or 6379) as proxy:
        yield proxy


@pytest.fixture
async def archive(module_database_url: str) -> AsyncIterator[PostgresArchive]:
    """The archive in the module's database."""
    async with archive_in(module_database_url) as archive:
        yield archive


@pytest.fixture
async def make_gateway() -> AsyncIterator[MakeGateway]:
    """Makes gateways to an address or a URL, and closes them; the circuit breaker opens only where configured."""
    made: list[RedisGateway | ClusterByKey] = []

    def make(
        where: str,
        kind: type[RedisGateway] = RedisGateway,
        *,
        deadline: float = 0.3,
        failures: int = NEVER,
        open_seconds: float = 60,
        connections: int = 4,
    ) -> Any:
        url = where if "://" in where else f"redis://{where}/0"
        made.append(
            (ClusterByKey if url.startswith("redis+cluster:") else kind)(
                url_of_redis(url),
                max_connections=connections,
                deadline_seconds=deadline,
                breaker_failures=failures,
                breaker_open_seconds=open_seconds,
            )
        )
        return made[-1]

    yield make
    for gateway in made:
        await gateway.aclose()


@pytest.fixture
def gateway(redis_url: str, make_gateway: MakeGateway) -> RedisGateway:
    """One to the store that all tests share."""
    return make_gateway(redis_url, deadline=5, failures=BREAKER_FAILURES, connections=8)


@pytest.fixture
def in_redis(redis_key_prefix: str) -> MakeStore:
    """Makes state stores with one key prefix."""

    def make(
        gateway: RedisGateway,
        policy: CommitPolicy | None = None,
        ttl_seconds: int = 60,
        kind: type[RedisStateStore] = RedisStateStore,
        *,
        law: CompletionLaw = LAW,
        backfill: ArchiveBackfill | None = None,
        max_essays: int | None = None,
        summary_made: Callable[[str, BatchSummary, CompletionLaw], None] = lambda *_: None,
    ) -> RedisStateStore:
        return kind(
            gateway,
            law=law,
            key_prefix=redis_key_prefix,
            ttl_seconds=ttl_seconds,
            policy=policy,
            backfill=backfill,
            max_essays=max_essays,
            summary_made=summary_made,
        )

    return make
