"""Redis and PostgreSQL that ask for TLS, client certificates and logins: all works, each refusal is named, and ends."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from redis.asyncio import Redis

from bcs.config import store_urls
from bcs.config.secrets import Secret
from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.errors import StoreUnavailable
from bcs.ops.doctor.archive_checks import check_archive
from bcs.ops.doctor.findings import Finding, Status
from bcs.ops.doctor.redis_checks import check_redis
from bcs.storage.postgres import schema
from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.redis.gateway import RedisGateway
from bcs.wire import topics
from tests.integration.stores import BREAKER_FAILURES, MakeGateway
from tests.support.certificates import Authority, KeyPair
from tests.support.databases import database
from tests.support.documented import postgresql_grants, redis_acl
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.redis_servers import redis_is_installed, tls_redis
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.tls_postgres import TlsPostgres, postgres_with_tls
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not redis_is_installed(), reason="no Redis with TLS: `redis-server` is not installed"),
    pytest.mark.skipif(postgres_with_tls() is None, reason="no PostgreSQL with TLS: `postgres` is not installed"),
]

FIRST, SECOND = "first/p@ssword", "second#p%ssword"
IN_URL = {FIRST: "first%2Fp%40ssword", SECOND: "second%23p%25ssword"}
# One, unless a second has passed meanwhile.
MOST_REFUSED = 3
Ask = Callable[[], Awaitable[object]]


class Certificates:
    """Those of both servers and of the service, and those that are wrong."""

    def __init__(self, directory: Path) -> None:
        for name in ("own", "foreign"):
            directory.joinpath(name).mkdir()
        self.ca, foreign = Authority(directory / "own"), Authority(directory / "foreign")
        self.foreign_ca = foreign.certificate
        self.server, self.client = self.ca.issue("server"), self.ca.issue("client")
        self.expired, self.expired_client = (self.ca.issue(name, expired=True) for name in ("expired", "past"))
        self.elsewhere = self.ca.issue("elsewhere", "elsewhere.example")
        self.foreign, self.foreign_client = foreign.issue("server"), foreign.issue("client")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@dataclass(frozen=True)
class SecuredRedis:
    """A Redis with TLS, and its operator's commands, which go over its socket."""

    server: EmbeddedServer
    certificates: Certificates

    @property
    def socket(self) -> Path:
        """The path of its socket."""
        return self.server.directory / "redis.sock"

    async def run(self, *command: str) -> None:
        """An operator's command."""
        client = Redis(unix_socket_path=str(self.socket))
        try:
            await cast("Any", client).execute_command(*command)
        finally:
            await client.aclose()

    async def refused_logins(self) -> int:
        """How many logins Redis has refused since `ACL LOG RESET`."""
        client = Redis(unix_socket_path=str(self.socket))
        try:
            return sum(int(str(entry["count"])) for entry in await client.acl_log() if entry["reason"] == "auth")
        finally:
            await client.aclose()

    async def use(self, pair: KeyPair) -> None:
        """Take another certificate for new connections."""
        await self.run("CONFIG", "SET", "tls-cert-file", str(pair.certificate), "tls-key-file", str(pair.key))

    async def disconnect_all(self) -> None:
        """Close all connections."""
        await self.run("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")

    def options(self, ca: Path | None = None, client: KeyPair | None = None) -> str:
        """The options of a URL."""
        named = f"?ssl_ca_certs={ca or self.certificates.ca.certificate}"
        return named + (f"&ssl_certfile={client.certificate}&ssl_keyfile={client.key}" if client else "")


@pytest.fixture(scope="module")
def _redis(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[SecuredRedis]:
    directory = tmp_path_factory.mktemp("r")
    with tls_redis(directory, certificates.server, certificates.ca.certificate) as server:
        yield SecuredRedis(server, certificates)


@pytest.fixture
async def redis(_redis: SecuredRedis) -> SecuredRedis:
    """The Redis as it should be, with the user of the documents, and a client certificate required."""
    await _redis.use(_redis.certificates.server)
    await _redis.run("CONFIG", "SET", "tls-auth-clients", "yes")
    await _redis.run("ACL", "SETUSER", "bcs", "reset")
    await _redis.run(*redis_acl(FIRST))
    return _redis


@dataclass(frozen=True)
class SecuredDatabase:
    """A database with the archive's schema, on a server with TLS; its user `bcs` needs a client certificate.

    :param url: the operator's.
    """

    server: TlsPostgres
    url: str
    certificates: Certificates

    async def run(self, statement: str) -> object:
        """An operator's statement, and the first value of its result."""
        connection = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    async def use(self, pair: KeyPair) -> None:
        """Take another certificate for new connections."""
        loaded = "SELECT pg_conf_load_time()"
        before = await self.run(loaded)
        self.server.use(pair)

        async def is_used() -> bool:
            return await self.run(loaded) != before

        await wait_until(is_used)

    def refused_logins(self) -> int:
        """How many logins the server has refused."""
        return self.server.log_path.read_bytes().count(b"password authentication failed")

    async def disconnect_all(self) -> None:
        """Close all connections of the service."""
        await self.run("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'bcs'")

    def url_of(self, user: str, password: str, *options: str) -> str:
        """A URL for the port of the server."""
        name = self.url.partition("@/")[2].partition("?")[0]
        return f"postgresql://{user}:{IN_URL.get(password, password)}@{self.server.address}/{name}?{'&'.join(options)}"

    def options(self, ca: Path | None = None, client: KeyPair | None = None) -> list[str]:
        """The options of a URL."""
        named = ["sslmode=verify-full", f"sslrootcert={ca or self.certificates.ca.certificate}"]
        return named + ([f"sslcert={client.certificate}", f"sslkey={client.key}"] if client else [])


@pytest.fixture(scope="module")
def _postgres(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[TlsPostgres]:
    directory = tmp_path_factory.mktemp("p")
    with TlsPostgres(directory, certificates.server, certificates.ca.certificate, certified=("bcs",)) as server:
        yield server


@pytest.fixture
def _database_url(_postgres: TlsPostgres) -> Iterator[str]:
    with database(_postgres.url) as url:
        yield url


@pytest.fixture
async def postgres(
    _postgres: TlsPostgres, _database_url: str, certificates: Certificates
) -> AsyncIterator[SecuredDatabase]:
    """The database as it should be, with the rights of the documents."""
    made = SecuredDatabase(_postgres, _database_url, certificates)
    await made.use(certificates.server)
    await schema.upgrade(_database_url)
    await made.run(f"CREATE ROLE bcs LOGIN PASSWORD '{FIRST}'")
    for statement in postgresql_grants("a user", "bcs").splitlines():
        await made.run(statement)
    try:
        yield made
    finally:
        await made.disconnect_all()
        await made.run("DROP OWNED BY bcs")
        await made.run("DROP ROLE bcs")


async def cause_of(ask: Ask) -> str:
    """Why a store can't be asked; empty where it can."""
    try:
        await ask()
    except StoreUnavailable as failure:
        return failure.cause
    return ""


async def test_each_refusal_of_redis_has_a_cause_that_is_clear(redis: SecuredRedis, make_gateway: MakeGateway) -> None:
    made, port = redis.certificates, redis.server.address
    whole = redis.options(client=made.client)
    causes = {
        f"rediss://bcs:{IN_URL[FIRST]}@{port}{whole}": "",
        f"unix://bcs:{IN_URL[FIRST]}@{redis.socket}": "",
        f"redis://bcs:{IN_URL[FIRST]}@{port}": "BCS_REDIS_URL must begin with rediss://",
        f"rediss://bcs:wrong@{port}{whole}": "it does not accept the user or the password of BCS_REDIS_URL",
        f"unix://bcs:wrong@{redis.socket}": "it does not accept the user or the password of BCS_REDIS_URL",
        f"rediss://{port}{redis.options()}": "client certificate",
        f"rediss://{port}{redis.options(client=made.expired_client)}": "client certificate",
        f"rediss://{port}{redis.options(client=made.foreign_client)}": "client certificate",
        f"rediss://{port}{redis.options(made.foreign_ca, made.client)}": "the server is not valid: self-signed",
        f"rediss://{port}{redis.options(made.ca.certificate.with_name('gone'))}": "ssl_ca_certs: No such file",
    }
    for url, cause in causes.items():
        gateway = make_gateway(url, deadline=5)
        # A ping needs a right that a call of the documented user has, too.
        for ask in (gateway.ping, partial(gateway.call_multiplexed, ("PING",))):
            found = await cause_of(ask)
            assert bool(found) == bool(cause), found
            assert cause in found
    url = next(iter(causes))
    for pair, cause in server_certificates(made).items():
        await redis.use(pair)
        assert cause in await cause_of(make_gateway(url, deadline=5).ping)


async def test_a_redis_without_tls_is_named(redis_url: str, make_gateway: MakeGateway) -> None:
    gateway = make_gateway(redis_url.replace("redis://", "rediss://"), deadline=0.2)
    for ask in (gateway.ping, partial(gateway.call_multiplexed, ("PING",))):
        assert "if it speaks no TLS there, BCS_REDIS_URL must begin with redis://" in await cause_of(ask)


async def test_all_connections_share_what_tls_needs_until_a_file_changes(
    redis: SecuredRedis, secrets: Secrets, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ssl.SSLContext] = []
    make = ssl.create_default_context

    def counted() -> ssl.SSLContext:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", counted)
    options = redis.options(client=secrets.client)
    gateway = make_gateway(f"rediss://bcs:{IN_URL[FIRST]}@{redis.server.address}{options}", deadline=5, connections=4)

    async def use_all_connections() -> None:
        await redis.disconnect_all()
        async with AsyncExitStack() as sessions:
            for _ in range(4):
                await (await sessions.enter_async_context(gateway.session())).call(("PING",))

    for _ in range(2):
        await use_all_connections()
    assert len(made) == 1
    secrets.client.write(redis.certificates.client)
    await use_all_connections()
    assert len(made) == 2
    # A pipe must not be opened: the event loop would wait for its writer.
    secrets.client.certificate.unlink()
    os.mkfifo(secrets.client.certificate)
    await redis.disconnect_all()
    assert "it is not a regular file" in await cause_of(gateway.ping)


def server_certificates(made: Certificates) -> dict[KeyPair, str]:
    """The certificates with which a server is refused, and why."""
    return {
        made.expired: "not valid: certificate has expired",
        made.elsewhere: "not valid: IP address mismatch, certificate is not valid for '127.0.0.1'",
        made.foreign: "not valid: unable to get local issuer certificate",
    }


async def test_each_refusal_of_postgresql_has_a_cause_that_is_clear(postgres: SecuredDatabase, tmp_path: Path) -> None:
    made, options, url_of = postgres.certificates, postgres.options, postgres.url_of
    os.mkfifo(tmp_path / "pipe")
    whole = options(client=made.client)
    name = postgres.url.partition("@/")[2].partition("?")[0]
    socket = f"@/{name}?host={postgres.server.socket_directory}&port={postgres.server.port}"
    causes = {
        url_of("bcs", FIRST, *whole): "",
        f"postgresql://bcs:{IN_URL[FIRST]}{socket}": "",
        url_of("bcs", FIRST, "sslmode=disable"): "no encryption",
        url_of("bcs", "wrong", *whole): "put the right user and password into BCS_DATABASE_URL",
        f"postgresql://bcs:wrong{socket}": "put the right user and password into BCS_DATABASE_URL",
        url_of("bcs", FIRST, *options()): "requires a valid client certificate",
        url_of("bcs", FIRST, *options(client=made.expired_client)): "client certificate",
        url_of("bcs", FIRST, *options(client=made.foreign_client)): "client certificate",
        url_of("bcs", FIRST, *options(made.foreign_ca, made.client)): "the server is not valid: self-signed",
        url_of("bcs", FIRST, *options(made.foreign_ca.with_name("gone"))): "sslrootcert: No such file",
        # A pipe must not be opened: the event loop would wait for its writer.
        url_of("bcs", FIRST, *options(tmp_path / "pipe")): "sslrootcert: it is not a regular file",
    }
    for url, cause in causes.items():
        found = await cause_of(partial(connect, url))
        assert bool(found) == bool(cause), found
        assert cause in found
    url = next(iter(causes))
    for pair, cause in server_certificates(made).items():
        await postgres.use(pair)
        assert cause in await cause_of(partial(connect, url))


@pytest.mark.parametrize("scheme", ["rediss", "unix"])
async def test_redis_is_not_asked_with_a_refused_password_again_at_once(
    redis: SecuredRedis, tmp_path: Path, scheme: str
) -> None:
    password = tmp_path / "password"
    password.write_text("wrong")
    place = (
        redis.server.address + redis.options(client=redis.certificates.client) if scheme == "rediss" else redis.socket
    )
    gateway = RedisGateway(
        store_urls.redis_url(f"{scheme}://bcs@{place}", password=Secret.from_file(password)),
        max_connections=1,
        deadline_seconds=5,
        breaker_failures=BREAKER_FAILURES,
        breaker_open_seconds=1,
    )
    await redis.run("ACL", "LOG", "RESET")
    for _ in range(20):
        for ask in (gateway.ping, partial(gateway.call_multiplexed, ("PING",))):
            assert (
                "it does not accept the user or the password of BCS_REDIS_URL and BCS_REDIS_PASSWORD"
                in await cause_of(ask)
            )
    assert 1 <= await redis.refused_logins() <= MOST_REFUSED
    password.write_text(FIRST)
    await gateway.ping()
    await gateway.aclose()


async def test_postgresql_is_not_asked_with_a_refused_password_again_at_once(
    postgres: SecuredDatabase, tmp_path: Path
) -> None:
    place = tmp_path / "url"
    options = postgres.options(client=postgres.certificates.client)
    place.write_text(postgres.url_of("bcs", "wrong", *options))
    gateway = ArchiveGateway(store_urls.database_url(Secret.from_file(place)), max_connections=1, deadline_seconds=5)
    ask = partial(gateway.run_unprobed, nothing, 5)
    before = postgres.refused_logins()
    try:
        for _ in range(20):
            assert "put the right user and password into BCS_DATABASE_URL" in await cause_of(ask)
        assert 1 <= postgres.refused_logins() - before <= MOST_REFUSED
        place.write_text(postgres.url_of("bcs", FIRST, *options))
        await ask()
    finally:
        await gateway.aclose()


async def test_a_postgresql_without_tls_is_named(postgres_url: str) -> None:
    assert "it does not speak TLS" in await cause_of(partial(connect, f"{postgres_url}?sslmode=require"))


async def connect(url: str) -> None:
    """Connect to PostgreSQL as the service does."""
    gateway = ArchiveGateway(url, max_connections=1, deadline_seconds=5)

    try:
        await gateway.run_unprobed(nothing, 5)
    finally:
        await gateway.aclose()


async def nothing(_: object) -> None: ...


@dataclass(frozen=True)
class Secrets:
    """The files that the service has its secrets and certificates in."""

    redis_password: Path
    database_url: Path
    client: KeyPair

    @property
    def settings(self) -> dict[str, object]:
        """The settings that name these files."""
        return {
            "redis_password": Secret.from_file(self.redis_password),
            "database_url": Secret.from_file(self.database_url),
        }


@pytest.fixture
def secrets(tmp_path: Path, redis: SecuredRedis, postgres: SecuredDatabase) -> Secrets:
    """Secrets and certificates that are right."""
    client = KeyPair(tmp_path / "client.pem", tmp_path / "client.key")
    client.write(redis.certificates.client)
    made = Secrets(tmp_path / "redis", tmp_path / "database", client)
    made.redis_password.write_text(f"{FIRST}\n")
    made.database_url.write_text(postgres.url_of("bcs", FIRST, *postgres.options(client=client)))
    return made


@pytest.fixture
async def secured(
    redis: SecuredRedis, postgres: SecuredDatabase, secrets: Secrets, module_kafka: str
) -> AsyncIterator[Whole]:
    """A service with both stores."""
    async with (
        running_service(
            redis_url=f"rediss://bcs@{redis.server.address}{redis.options(client=secrets.client)}",
            redis_key_prefix="bcs:",
            redis_breaker_open_seconds=0.1,
            redis_deadline_seconds=2.0,
            database_deadline_seconds=2.0,
            kafka_bootstrap_servers=module_kafka,
            **secrets.settings,
        ) as service,
        Orchestrator(service.base) as orchestrator,
        Platform(module_kafka) as platform,
    ):
        yield Whole(service, orchestrator, platform, redis, postgres, secrets)


@dataclass(frozen=True)
class Whole:
    """A running service between its stores and its platform."""

    service: RunningService
    orchestrator: Orchestrator
    platform: Platform
    redis: SecuredRedis
    postgres: SecuredDatabase
    secrets: Secrets

    async def problems(self) -> dict[str, str]:
        """What /healthz says about the stores that are not well."""
        answer = await self.orchestrator.get("/healthz")
        assert answer.status == 200
        found = answer.json["dependencies"]
        return {
            name: found[name]["message"] for name in ("redis", "postgresql") if found[name]["status"] == "unhealthy"
        }

    async def disconnect_all(self) -> None:
        """Let the service connect anew."""
        await self.redis.disconnect_all()
        await self.postgres.disconnect_all()

    async def are_named(self, redis: str, postgresql: str) -> None:
        """Wait until /healthz says why each store refuses."""

        async def named() -> bool:
            found = await self.problems()
            return redis in found.get("redis", "") and postgresql in found.get("postgresql", "")

        try:
            await wait_until(named)
        except AssertionError as error:
            raise AssertionError(f"{redis!r} and {postgresql!r}: {await self.problems()}") from error

    async def are_well(self) -> None:
        """Wait until the service uses both stores."""

        async def well() -> bool:
            return not await self.problems()

        await wait_until(well)

    async def does_all(self, batch: str) -> None:
        """A fact comes in, an answer and an announcement go out, and all of it is in the archive."""
        await self.platform.send(registered(batch, ["a"]), spellchecked(batch, "a"))
        await self.has_done_all(batch)

    async def has_done_all(self, batch: str) -> None:
        """The same about events that were sent before."""
        await wait_until(lambda: self.platform.caught_up(self.service.group), timeout_seconds=20)
        assert (await self.orchestrator.define(batch, "ai_feedback")).json["pruned_phases"] == ["spellcheck"]
        await wait_until(lambda: self.platform.messages(topics.PHASE_SKIPPED, batch))

        async def archived() -> bool:
            history = await self.orchestrator.get(f"/internal/v1/batches/{batch}/history")
            assert history.status == 200
            return {"facts", "resolution"} <= {entry["kind"] for entry in history.json["entries"]}

        await wait_until(archived)


async def test_all_works_over_tls_with_the_documented_rights_and_passwords_rotate(
    secured: Whole, unique_name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    await secured.are_well()
    await secured.does_all(unique_name("batch"))
    # A dead letter, and what an operator's doctor looks at.
    batch = unique_name("batch")
    await secured.platform.send(spellchecked(batch, "a", "no-status"))
    await wait_until(lambda: secured.platform.messages(topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED), batch))
    settings = secured.service.service.settings
    assert not failed_of(await check_redis(settings) + await check_archive(settings))
    # Both passwords change before their files do.
    await secured.redis.run("ACL", "SETUSER", "bcs", "resetpass", f">{SECOND}")
    await secured.postgres.run(f"ALTER ROLE bcs PASSWORD '{SECOND}'")
    await secured.disconnect_all()
    redis, postgresql = "BCS_REDIS_URL and BCS_REDIS_PASSWORD", "user and password into BCS_DATABASE_URL"
    await secured.are_named(f"it does not accept the user or the password of {redis}", postgresql)
    in_doctor = "\n".join(failed_of(await check_redis(settings) + await check_archive(settings)))
    in_log = "\n".join(str(vars(record)) for record in caplog.records)
    for said in (in_doctor, in_log):
        assert redis in said
        assert postgresql in said
    late = unique_name("batch")
    await secured.platform.send(registered(late, ["a"]), spellchecked(late, "a"))
    assert (await secured.orchestrator.define(batch)).status == 503
    secured.secrets.redis_password.write_text(SECOND)
    url = secured.secrets.database_url.read_text()
    secured.secrets.database_url.write_text("postgresql://bcs:not/valid@")
    await wait_until(lambda: logged(caplog, "changed_url_unusable"))
    secured.secrets.database_url.write_text(url.replace(IN_URL[FIRST], IN_URL[SECOND]))
    await secured.are_well()
    await secured.has_done_all(late)
    assert len(logged(caplog, "changed_url_unusable")) == 1
    assert not secured.service.restarted()


def failed_of(findings: list[Finding]) -> list[str]:
    """What doctor found to be wrong."""
    return [finding.found for finding in findings if finding.status is Status.FAILED]


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[object]:
    """The log's records of an event."""
    return [record for record in caplog.records if record.msg == event]


@pytest.mark.release
async def test_whatever_a_secured_store_refuses_the_service_names_it_and_recovers(
    secured: Whole, unique_name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    redis, postgres, client = secured.redis, secured.postgres, secured.secrets.client
    made = redis.certificates

    def both_use(pair: KeyPair) -> Ask:
        async def use() -> None:
            await redis.use(pair)
            await postgres.use(pair)

        return use

    def client_has(pair: KeyPair) -> Ask:
        async def use() -> None:
            client.write(pair)

        return use

    async def no_client_certificate() -> None:
        client.certificate.unlink()

    async def rights(redis_right: str, statement: str) -> None:
        await redis.run("ACL", "SETUSER", "bcs", redis_right)
        await postgres.run(statement)

    ways: dict[str, tuple[Ask, Ask, str, str]] = {
        cause: (both_use(pair), both_use(made.server), cause, cause)
        for pair, cause in server_certificates(made).items()
    }
    ways["expired client certificate"] = (
        *(client_has(made.expired_client), client_has(made.client)),
        *("client certificate", "client certificate"),
    )
    ways["missing client certificate"] = (
        *(no_client_certificate, client_has(made.client)),
        *("ssl_certfile: No such file", "sslcert: No such file"),
    )
    ways["a right"] = (
        partial(rights, "-hset", "REVOKE INSERT ON history FROM bcs"),
        partial(rights, "+hset", "GRANT INSERT ON history TO bcs"),
        *("'hset'", "may not write to the archive's tables"),
    )
    for name, (begin, end, in_redis, in_postgresql) in ways.items():
        await secured.are_well()
        caplog.clear()
        batch = unique_name("batch")
        await begin()
        await secured.disconnect_all()
        await secured.platform.send(registered(batch, ["a"]), spellchecked(batch, "a"))
        await secured.are_named(in_redis, in_postgresql)
        settings = secured.service.service.settings
        in_doctor = "\n".join(failed_of(await check_redis(settings) + await check_archive(settings)))
        in_log = "\n".join(str(vars(record)) for record in caplog.records)
        for said in (in_doctor, in_log):
            assert in_redis in said, name
            assert in_postgresql in said, name
        await end()
        await secured.are_well()
        await secured.has_done_all(batch)
    assert not secured.service.restarted()
    assert not await secured.platform.messages(topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED), batch)
