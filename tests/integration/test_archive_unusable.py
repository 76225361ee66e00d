"""Databases that answer and can't hold the archive are named at the start, and later lose no facts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from bcs.config.loading import load_settings
from bcs.config.store_urls import StoreUrl
from bcs.devtools.servers.embedded import HOST, EmbeddedServer
from bcs.errors import StoreUnavailable
from bcs.ops.doctor.archive_checks import check_archive
from bcs.ops.doctor.findings import Status
from bcs.storage.postgres import schema
from bcs.storage.postgres.gateway import ArchiveGateway
from tests.support.commands import bcs
from tests.support.databases import archive_in, database, unprobed_archive
from tests.support.fault_proxy import FaultProxy
from tests.support.history_entries import consumed, spellchecked
from tests.support.pgbouncer import behind
from tests.support.service import BcsProcess, Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

NOT_LATIN1 = "☃"
READ_ONLY = "accepts no writes"


@pytest.fixture(scope="module")
def latin1_url(postgres_url: str) -> Iterator[str]:
    """A database whose encoding has not every character."""
    with database(postgres_url, "ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'") as url:
        yield url


@pytest.fixture(scope="module")
def ascii_url(postgres_url: str) -> Iterator[str]:
    """A database that takes any bytes for text, and checks none of them."""
    with database(postgres_url, "ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'") as url:
        yield url


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to this test's own database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def test_a_service_does_not_start_on_a_database_that_is_not_utf8(latin1_url: str, tmp_path: Path) -> None:
    # Nothing else is asked for before.
    with BcsProcess(tmp_path, "serve", forked=True, BCS_DATABASE_URL=latin1_url, BCS_HTTP_PORT=0) as process:
        assert await process.ended() == 2
    [message] = process.log.read_text().splitlines()
    assert message.startswith("bcs: BCS_DATABASE_URL names a database in the encoding LATIN1")
    assert "ENCODING 'UTF8'" in message


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
async def test_an_encoding_other_than_utf8_is_named_and_nothing_is_written(
    latin1_url: str, ascii_url: str, pooled: bool, request: pytest.FixtureRequest
) -> None:
    for url, encoding in ((latin1_url, "LATIN1"), (ascii_url, "SQL_ASCII")):
        there = behind(request.getfixturevalue("pooler"), url) if pooled else url
        archive = unprobed_archive(there)
        with capture_logs() as logs:
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match=f"in the encoding {encoding}"):
                    await archive.probe(4)
        assert [entry["event"] for entry in logs] == ["archive_unusable"]
        assert not archive.reachable
        with pytest.raises(StoreUnavailable, match=encoding):
            await archive.write([consumed("b", spellchecked(NOT_LATIN1))])
        await archive.aclose()
        [found] = await check_archive(load_settings(database_url=there))
        assert (found.status, f"encoding {encoding}" in found.found, "UTF8" in found.fix) == (Status.FAILED, True, True)


@pytest.mark.parametrize("command", ["upgrade", "rebuild"])
async def test_a_command_refuses_a_database_that_is_not_utf8(latin1_url: str, redis_url: str, command: str) -> None:
    ran = await bcs("db", command, BCS_DATABASE_URL=latin1_url, BCS_REDIS_URL=redis_url)
    assert (ran.exit_code, ran.output) == (2, "")
    assert "the encoding LATIN1" in ran.error
    assert len(ran.error.splitlines()) == 1


@pytest.mark.release
async def test_facts_wait_while_the_database_is_not_utf8(
    latin1_url: str, redis_url: str, kafka_bootstrap_servers: str, batch: str
) -> None:
    target = urlsplit(latin1_url)
    async with FaultProxy(target.hostname or "", target.port or 0) as proxy:
        proxy.refuse()
        settings = {
            "redis_url": redis_url,
            "kafka_bootstrap_servers": kafka_bootstrap_servers,
            "database_url": target._replace(netloc=f"{target.username}@{proxy.address}").geturl(),
        }
        async with running_service(**settings) as service, Orchestrator(service.base) as orchestrator:
            archive = service.service.persistence.archive
            assert archive is not None
            proxy.accept()
            await wait_until(lambda: "LATIN1" in archive.postgres.problem)
            assert (await orchestrator.complete(f"{batch}{NOT_LATIN1}", "spellcheck")).status == 200
            await wait_until(lambda: archive.backlog.last_known == 1)
            health = (await orchestrator.get("/healthz")).json
            assert "LATIN1" in health["dependencies"]["postgresql"]["message"]


async def test_a_character_missing_in_an_encoding_counts_as_an_outage(database_url: str) -> None:
    gateway = ArchiveGateway(database_url, max_connections=1, deadline_seconds=4)
    await gateway.probe(4)
    with pytest.raises(StoreUnavailable, match="UntranslatableCharacter"):
        await gateway.run(lambda connection: connection.execute(f"SELECT convert_to('{NOT_LATIN1}', 'LATIN1')"))
    assert not gateway.reachable
    await gateway.aclose()


async def test_a_full_disk_is_logged_and_counts_as_an_outage(database_url: str) -> None:
    gateway = ArchiveGateway(database_url, max_connections=1, deadline_seconds=4)
    await gateway.probe(4)
    full = "DO $$ BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="could not extend file"):
                await gateway.run(lambda connection: connection.execute(full))
    assert [(entry["event"], "could not extend" in entry["problem"]) for entry in logs] == [
        ("archive_out_of_resources", True)
    ]
    await gateway.aclose()


async def test_the_doctor_finds_missing_rights(
    database_url: str, admin: asyncpg.Connection, unique_name: Callable[[str], str]
) -> None:
    role = unique_name("role").replace("-", "_")
    await admin.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 8")
    parts = urlsplit(database_url)
    settings = load_settings(database_url=parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}").geturl())

    async def found(check: str) -> tuple[Status, str]:
        [finding] = [each for each in await check_archive(settings) if each.check == check]
        return finding.status, finding.found

    try:
        status, said = await found("postgresql schema")
        assert (status, "may not create the archive's tables in the schema public" in said) == (Status.FAILED, True)
        status, said = await found("postgresql connections")
        assert (status, said.startswith("8 allowed")) == (Status.WARNING, True)
        await schema.upgrade(database_url)
        status, said = await found("postgresql")
        assert (status, said.startswith("it answers, and refuses: "), "permission denied" in said) == (
            Status.FAILED,
            True,
            True,
        )
        await admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        status, said = await found("postgresql writes")
        assert (status, "may not write" in said) == (Status.FAILED, True)
    finally:
        await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_session_settings_of_a_role_change_nothing(
    database_url: str, admin: asyncpg.Connection, unique_name: Callable[[str], str]
) -> None:
    role = unique_name("role").replace("-", "_")
    await admin.execute(
        f"CREATE ROLE {role} LOGIN SUPERUSER; ALTER ROLE {role} SET client_encoding = 'LATIN1';"
        f"ALTER ROLE {role} SET standard_conforming_strings = off; ALTER ROLE {role} SET timezone = 'Asia/Tokyo'"
    )
    parts = urlsplit(database_url)
    entry = consumed("b\\", spellchecked(NOT_LATIN1 + "\\'"))
    try:
        async with archive_in(parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}").geturl()) as archive:
            await archive.write([entry])
        async with archive_in(database_url) as archive:
            assert [kept.entry for kept in await archive.history("b\\", limit=9)] == [entry]
    finally:
        await admin.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP ROLE {role}")


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
async def test_a_read_only_database_is_named(
    database_url: str, admin: asyncpg.Connection, pooled: bool, request: pytest.FixtureRequest
) -> None:
    url = database_url
    if pooled:
        pooler: EmbeddedServer = request.getfixturevalue("pooler")
        url = behind(pooler, database_url)
    await schema.upgrade(url)
    name = urlsplit(database_url).path[1:]
    await admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    # The pooler's connections begin as before, and tell its clients what was true then.
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    archive = unprobed_archive(url)

    async def named() -> bool:
        with pytest.raises(StoreUnavailable):
            await archive.probe(4)
        return READ_ONLY in archive.problem

    await wait_until(named)
    assert not archive.reachable
    found = await check_archive(load_settings(database_url=url))
    assert any(READ_ONLY in finding.found for finding in found if finding.status is Status.FAILED)
    await archive.aclose()


async def test_a_database_that_accepts_no_connections_is_unavailable(database_url: str, postgres_url: str) -> None:
    name = urlsplit(database_url).path[1:]
    archive = unprobed_archive(database_url)
    admin = await asyncpg.connect(postgres_url)
    try:
        await archive.probe(5)
        assert archive.reachable
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)

        async def refuses() -> bool:
            with pytest.raises(StoreUnavailable) as refused:
                await archive.probe(5)
            return "not currently accepting connections" in refused.value.cause

        await wait_until(refuses)
        assert not archive.reachable
        assert "not currently accepting connections" in archive.problem
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await archive.probe(5)
        assert archive.reachable
    finally:
        await archive.aclose()
        await admin.close()


@pytest.mark.parametrize("how", ["refused", "cut"])
async def test_a_database_that_goes_away_during_an_upgrade_is_upgraded_as_soon_as_it_is_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A pause is for reasons that an operator has to solve."""
    server = urlsplit(database_url)
    upgrade = schema.upgrade
    async with FaultProxy(HOST, server.port or 0) as proxy:

        async def away(url: StoreUrl) -> object:
            if how == "refused":
                proxy.refuse()
                return await upgrade(url)
            proxy.drop_replies(b"CREATE TABLE")  # the proxy cuts the connection in their place
            return await upgrade(url)

        archive = unprobed_archive(server._replace(netloc=f"bcs@{proxy.address}").geturl())
        try:
            monkeypatch.setattr(schema, "upgrade", away)
            with pytest.raises(StoreUnavailable):
                await archive.probe(5)
            monkeypatch.setattr(schema, "upgrade", upgrade)
            proxy.accept()
            await archive.probe(5)
            assert archive.reachable
        finally:
            await archive.aclose()
