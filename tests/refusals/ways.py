"""Each way in which a dependency refuses: how it is brought about, and what the service is to make of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from bcs.devtools.servers.embedded import free_port
from bcs.wire import topics
from tests.kafka.forbidding import GROUP, READ, TOPIC, WRITE, forbidden
from tests.refusals.servers import Servers

During = Callable[[Servers], AbstractAsyncContextManager[None]]

SLOW_SECONDS = 6.0  # longer than any deadline of the tests' service
_WRITES = ("-eval", "-hset", "-xadd")


@dataclass(frozen=True)
class Series:
    """A series of `/metrics` that tells of it: its value is 0, or for `above_zero` more than that."""

    name: str
    label: str = ""
    above_zero: bool = False

    def __str__(self) -> str:
        selected = f"{{{self.label}}}" if self.label else ""
        return f"`{self.name}{selected}{' > 0' if self.above_zero else ' == 0'}`"

    def tells(self, samples: Iterable[tuple[str, Mapping[str, str], float]]) -> bool:
        """True where one of the samples is it."""
        return any(
            name == self.name
            and self.label in {f'{label}="{value}"' for label, value in labels.items()} | {""}
            and (measured > 0 if self.above_zero else measured == 0)
            for name, labels, measured in samples
        )


_USUAL = {
    "redis": Series("bcs_redis_up"),
    "postgresql": Series("bcs_archive_up"),
    "kafka": Series("bcs_kafka_up"),
}


@dataclass(frozen=True)
class Way:
    """A dependency refuses.

    :param dependency: as `/healthz` calls it.
    :param refuses: in which way, for a person.
    :param during: brings it about, and takes it back.
    :param answered: the statuses of `define`, of a batch that has phases to prune; with who was asked.
    :param named: what `/healthz` says of the dependency.
    :param logged: the log event that tells of it, at WARNING or above.
    :param found: what `bcs doctor` finds; empty where its words are those of `/healthz`.
    :param series: what the metrics say, where it is not that the dependency is not up.
    """

    dependency: str
    refuses: str
    during: During
    answered: str
    named: str
    logged: str
    with_record: bool = False
    found: str = ""
    series: Series | None = None

    @property
    def measured(self) -> Series:
        """What the metrics say."""
        return self.series or _USUAL[self.dependency]

    @property
    def row(self) -> str:
        """A line of the table in docs/refusals.md."""
        by_record = self.answered == "200" and self.dependency == "redis" and self.with_record
        answered = f"{self.answered}, from PostgreSQL" if by_record else self.answered
        found = self.found or "the same"
        cells = (self.dependency, self.refuses, answered, self.named, str(self.measured), f"`{self.logged}`", found)
        return f"| {' | '.join(cells)} |"


# Redis


@asynccontextmanager
async def _redis_lacks_rights(servers: Servers) -> AsyncIterator[None]:
    await servers.redis.run("ACL", "SETUSER", "default", *_WRITES)
    yield
    await servers.redis.run("ACL", "SETUSER", "default", "+@all")


@asynccontextmanager
async def _redis_wants_a_password(servers: Servers) -> AsyncIterator[None]:
    await servers.redis.run("ACL", "SETUSER", "default", "resetpass", ">secret")
    await servers.redis.disconnect_all()
    yield
    await servers.redis.run("ACL", "SETUSER", "default", "nopass")


def _redis_runs_with(*options: str) -> During:
    @asynccontextmanager
    async def during(servers: Servers) -> AsyncIterator[None]:
        await servers.redis.restart_with(*options)
        yield
        await servers.redis.restart_with()

    return during


def _redis_configured(name: str, value: str, before: str) -> During:
    @asynccontextmanager
    async def during(servers: Servers) -> AsyncIterator[None]:
        await servers.redis.run("CONFIG", "SET", name, value)
        yield
        await servers.redis.run("CONFIG", "SET", name, before)

    return during


@asynccontextmanager
async def _redis_is_a_replica(servers: Servers) -> AsyncIterator[None]:
    await servers.redis.run("REPLICAOF", "127.0.0.1", "1")
    yield
    await servers.redis.run("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def _redis_is_slow(servers: Servers) -> AsyncIterator[None]:
    servers.redis.proxy.delay(SLOW_SECONDS)
    yield
    servers.redis.proxy.delay(0)


@asynccontextmanager
async def _redis_is_silent(servers: Servers) -> AsyncIterator[None]:
    servers.redis.server.freeze()
    yield
    servers.redis.server.thaw()


@asynccontextmanager
async def _redis_is_gone(servers: Servers) -> AsyncIterator[None]:
    servers.redis.server.kill()
    yield
    servers.redis.server.restart()


# PostgreSQL


def _database_told(begin: tuple[str, ...], end: tuple[str, ...]) -> During:
    @asynccontextmanager
    async def during(servers: Servers) -> AsyncIterator[None]:
        assert servers.database
        await servers.database.run(*begin)
        await servers.database.disconnect_all()
        yield
        await servers.database.run(*end)
        await servers.database.disconnect_all()

    return during


@asynccontextmanager
async def _database_is_slow(servers: Servers) -> AsyncIterator[None]:
    assert servers.database
    servers.database.proxy.delay(SLOW_SECONDS)
    yield
    servers.database.proxy.delay(0)


@asynccontextmanager
async def _database_is_silent(servers: Servers) -> AsyncIterator[None]:
    assert servers.database
    servers.database.server.freeze()
    yield
    servers.database.server.thaw()


@asynccontextmanager
async def _database_is_gone(servers: Servers) -> AsyncIterator[None]:
    assert servers.database
    servers.database.server.kill()
    yield
    servers.database.server.restart()


# Kafka


def _kafka_forbids(kind: int, name: str, operation: int) -> During:
    @asynccontextmanager
    async def during(servers: Servers) -> AsyncIterator[None]:
        resource = name or str(servers.settings["kafka_consumer_group_id"])
        async with forbidden(servers.bootstrap_servers, kind, resource, operation):
            yield

    return during


@asynccontextmanager
async def _kafka_is_slow(servers: Servers) -> AsyncIterator[None]:
    servers.kafka_proxy.delay(SLOW_SECONDS)
    yield
    servers.kafka_proxy.delay(0)


@asynccontextmanager
async def _kafka_is_silent(servers: Servers) -> AsyncIterator[None]:
    servers.kafka.freeze()
    yield
    servers.kafka.thaw()


@asynccontextmanager
async def _kafka_is_gone(servers: Servers) -> AsyncIterator[None]:
    servers.kafka.kill()
    yield
    servers.kafka.restart()


def _with_record(
    refuses: str, during: During, named: str, logged: str = "archive_unreachable", series: Series | None = None
) -> Way:
    return Way("postgresql", refuses, during, "200", named, logged, with_record=True, series=series)


WAYS = (
    Way("redis", "rights: EVAL, HSET and XADD", _redis_lacks_rights, "503", "lacks a right", "redis_refuses"),
    Way(
        "redis", "rights: another password", _redis_wants_a_password, "503", "requires a password", "redis_probe_failed"
    ),
    Way(
        "redis",
        "version: no XAUTOCLAIM",
        _redis_runs_with("--rename-command", "XAUTOCLAIM", ""),
        "200",
        "lacks a command that BCS needs",
        "redis_refuses",
    ),
    Way(
        "redis",
        "redirect: a node without slots of a cluster",
        _redis_runs_with("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
        "503",
        "node of a Redis Cluster",
        "redis_probe_failed",
    ),
    Way("redis", "full", _redis_configured("maxmemory", "1", "0"), "503", "memory is full", "redis_refuses"),
    Way("redis", "read-only: a replica", _redis_is_a_replica, "503", "is a replica", "redis_probe_failed"),
    Way("redis", "slow", _redis_is_slow, "503", "did not answer in time", "redis_probe_failed"),
    Way("redis", "silent", _redis_is_silent, "503", "did not answer in time", "redis_probe_failed"),
    Way("redis", "gone", _redis_is_gone, "503", "Connection", "redis_probe_failed"),
    Way("redis", "gone", _redis_is_gone, "200", "Connection", "redis_probe_failed", with_record=True),
    _with_record(
        "rights: INSERT",
        _database_told(("REVOKE INSERT ON history FROM service",), ("GRANT INSERT ON history TO service",)),
        "this user may not write to the archive's tables",
        "archive_unusable",
    ),
    _with_record(
        "rights: the login",
        _database_told(("ALTER ROLE service NOLOGIN",), ("ALTER ROLE service LOGIN",)),
        "not permitted to log in",
    ),
    _with_record(
        "version: a table is missing",
        _database_told(("ALTER TABLE history RENAME TO hidden",), ("ALTER TABLE hidden RENAME TO history",)),
        "does not exist",
    ),
    _with_record(
        "full: no connection is left",
        _database_told(("ALTER ROLE service CONNECTION LIMIT 0",), ("ALTER ROLE service CONNECTION LIMIT -1",)),
        "too many connections",
        "archive_out_of_resources",
        Series("bcs_actor_waits_seconds", 'actor="archive"', above_zero=True),
    ),
    _with_record(
        "read-only",
        _database_told(
            ("ALTER ROLE service SET default_transaction_read_only = on",),
            ("ALTER ROLE service RESET default_transaction_read_only",),
        ),
        "accepts no writes",
    ),
    _with_record("slow", _database_is_slow, "no answer in time"),
    _with_record("silent", _database_is_silent, "no answer in time"),
    _with_record("gone", _database_is_gone, "Connection"),
    Way(
        "kafka",
        "rights: READ of a topic",
        _kafka_forbids(TOPIC, topics.SPELLCHECK_COMPLETED, READ),
        "200",
        "TOPIC_AUTHORIZATION_FAILED",
        "partition_stalled",
        series=Series("bcs_kafka_partition_stalled", f'topic="{topics.SPELLCHECK_COMPLETED}"', above_zero=True),
    ),
    Way(
        "kafka",
        "rights: WRITE of a topic",
        _kafka_forbids(TOPIC, topics.PHASE_SKIPPED, WRITE),
        "200",
        f"messages for {topics.PHASE_SKIPPED} wait",
        "waiting_for_dependency",
        series=Series("bcs_actor_waits_seconds", 'actor="publisher"', above_zero=True),
    ),
    Way(
        "kafka",
        "rights: READ of the group",
        _kafka_forbids(GROUP, "", READ),
        "200",
        "GROUP_AUTHORIZATION_FAILED",
        "waiting_for_dependency",
        series=Series("bcs_actor_waits_seconds", 'actor="intake"', above_zero=True),
    ),
    Way("kafka", "slow", _kafka_is_slow, "200", "no answer in time", "kafka_unreachable"),
    Way("kafka", "silent", _kafka_is_silent, "200", "no answer in time", "kafka_unreachable"),
    Way("kafka", "gone", _kafka_is_gone, "200", "Kafka", "kafka_unreachable"),
)
