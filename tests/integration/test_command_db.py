"""`bcs db upgrade`, alone and beside others that do the same."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from bcs.config.loading import load_settings
from bcs.devtools.servers.embedded import free_port
from bcs.errors import StoreUnavailable
from bcs.storage.postgres import schema
from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.postgres.migrations import HEAD
from bcs.storage.postgres.opening import PostgresClientMissing, named_database
from tests.support.commands import bcs
from tests.support.databases import unprobed_archive
from tests.support.service import BcsProcess, running_service, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


async def tables(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return [row["tablename"] for row in rows]
    finally:
        await connection.close()


async def test_an_empty_database_is_upgraded_once(database_url: str) -> None:
    ran = await bcs("db", "upgrade", BCS_DATABASE_URL=database_url)
    assert (ran.exit_code, ran.output) == (0, f"The schema is upgraded from nothing to version {HEAD}.\n")
    assert {"batches", "history"} <= set(await tables(database_url))
    ran = await bcs("db", "upgrade", BCS_DATABASE_URL=database_url)
    assert (ran.exit_code, ran.output) == (0, f"The schema is already current: version {HEAD}.\n")


async def test_five_at_once_beside_a_service_that_starts(
    database_url: str, redis_url: str, kafka_bootstrap_servers: str, tmp_path: Path
) -> None:
    upgraded: list[schema.Upgraded] = []

    async def upgrade() -> None:
        upgraded.append(await schema.upgrade(database_url, wait_seconds=20))

    settings = {"redis_url": redis_url, "kafka_bootstrap_servers": kafka_bootstrap_servers}
    with BcsProcess(tmp_path, "db", "upgrade", BCS_DATABASE_URL=database_url) as process:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(upgrade)
            async with running_service(**settings, database_url=database_url) as service:
                archive = service.service.persistence.archive
                assert archive is not None
                opened = archive.postgres
                await wait_until(lambda: opened.reachable)
        assert await process.ended() == 0, process.log.read_text()
    assert {outcome.after for outcome in upgraded} == {HEAD}
    assert sum(outcome.before is None for outcome in upgraded) <= 1


async def test_a_newer_schema_is_left_alone(database_url: str) -> None:
    await schema.upgrade(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE bcs_schema_version SET version_num = '9999'")
    await connection.close()
    assert await schema.upgrade(database_url) == schema.Upgraded("9999", "9999")


async def test_a_database_that_is_away_or_refuses_is_told_in_one_line(
    database_url: str, unique_name: Callable[[str], str]
) -> None:
    reader = unique_name("reader")
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(f'CREATE ROLE "{reader}" LOGIN')
        narrow = urlsplit(database_url)
        refusing = narrow._replace(netloc=f"{reader}:a-secret@{narrow.hostname}:{narrow.port}").geturl()
        for url in (f"postgresql://bob:a-secret@127.0.0.1:{free_port()}/bcs", refusing):
            ran = await bcs("db", "upgrade", BCS_DATABASE_URL=url)
            assert (ran.exit_code, ran.output) == (1, "")
            [line] = ran.error.splitlines()
            assert line.startswith("bcs: postgresql ")
            assert "a-secret" not in line
    finally:
        await connection.execute(f'DROP ROLE IF EXISTS "{reader}"')
        await connection.close()


async def test_a_database_that_does_not_answer_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, anyio.fail_after(20):
        url = f"postgresql://bob@127.0.0.1:{silent.getsockname()[1]}/bcs"
        ran = await bcs("db", "upgrade", BCS_DATABASE_URL=url, BCS_DATABASE_DEADLINE_SECONDS=0.3)
    assert (ran.exit_code, ran.output) == (1, "")
    assert "no answer in time" in ran.error


@pytest.mark.parametrize("command", ["upgrade", "rebuild"])
async def test_without_a_database_in_the_settings_there_is_nothing_to_do(command: str) -> None:
    ran = await bcs("db", command)
    assert (ran.exit_code, ran.output) == (2, "")
    assert ran.error == "bcs: BCS_DATABASE_URL is not set: there is no archive\n"


def test_a_client_that_is_not_installed_is_told_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bcs.storage.postgres.opening.find_spec", lambda _: None)
    with pytest.raises(PostgresClientMissing, match="pip install"):
        named_database(load_settings(database_url="postgresql://127.0.0.1/bcs"))


async def test_a_stop_does_not_wait_for_another_replicas_upgrade(
    database_url: str, redis_url: str, kafka_bootstrap_servers: str, tmp_path: Path
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(f"SELECT pg_advisory_lock({schema._ADVISORY_LOCK})")
        settings = {"BCS_DATABASE_URL": database_url, "BCS_DATABASE_FIRST_PROBE_SECONDS": 0.2}
        with serve(tmp_path, redis_url, kafka_bootstrap_servers, **settings) as process:
            await process.answers()
            process.signal(signal.SIGTERM)
            assert await process.ended(15) == 0
    finally:
        await connection.close()


async def test_rights_that_are_missing_are_told_and_not_found_out_by_each_write(
    database_url: str, unique_name: Callable[[str], str]
) -> None:
    await schema.upgrade(database_url)
    reader = unique_name("reader").replace("-", "_")
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(f"CREATE ROLE {reader} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}")
        parts = urlsplit(database_url)
        opened = unprobed_archive(parts._replace(netloc=f"{reader}@{parts.netloc.rpartition('@')[2]}").geturl())
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="may not write"):
                await opened.probe(5)
            assert not opened.reachable
        await opened.aclose()
    finally:
        await connection.execute(f"DROP OWNED BY {reader}; DROP ROLE {reader}")
        await connection.close()


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
async def test_a_host_whose_name_can_be_none_counts_as_away(host: str) -> None:
    # The settings refuse such a URL; a service file may still name such a host.
    gateway = ArchiveGateway(f"postgresql://{host}/bcs", max_connections=1, deadline_seconds=5)
    with pytest.raises(StoreUnavailable):
        await gateway.probe(5)
    await gateway.aclose()
