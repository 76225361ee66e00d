"""The archive behind PgBouncer in transaction mode, and upgrades that other sessions block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import anyio
import asyncpg
import pytest
from structlog.testing import capture_logs

from bcs.config.loading import load_settings
from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.errors import SchemaLocked, StoreUnavailable
from bcs.ops.doctor.archive_checks import check_archive
from bcs.ops.doctor.findings import Status
from bcs.storage.postgres import schema
from bcs.storage.postgres.migrations import HEAD
from bcs.wire.published import OutboundMessage, phases_skipped
from tests.support.commands import bcs
from tests.support.databases import archive_in, unprobed_archive
from tests.support.history_entries import answered, consumed
from tests.support.pgbouncer import behind
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
ADVISORY_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.fixture
def pooled_url(pooler: EmbeddedServer, database_url: str) -> str:
    """This test's own database, through PgBouncer."""
    return behind(pooler, database_url)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        yield connection
    finally:
        await connection.close()


async def test_an_upgrade_through_a_pooler_releases_its_lock(pooled_url: str, database_url: str) -> None:
    async with connected(database_url) as direct:
        with anyio.fail_after(20):
            for _ in range(3):
                assert await schema.upgrade(pooled_url) == schema.Upgraded(None, HEAD)
                assert await schema.upgrade(pooled_url) == schema.Upgraded(HEAD, HEAD)
                assert await direct.fetchval(ADVISORY_LOCKS) == 0
                await direct.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


async def test_work_through_a_pooler_leaves_no_state_on_connections(pooled_url: str, batch: str) -> None:
    async def take(_: list[OutboundMessage]) -> None:
        pass

    async with archive_in(pooled_url) as archive:
        await archive.write([consumed(batch)])
        assert await archive.history(batch, limit=9)
        assert not (await archive.state(batch)).empty
        await archive.store_announcements(phases_skipped(batch, ["nlp"], "c", datetime.now(UTC)), answered(batch))
        assert await archive.deliver_announcements(take, limit=9, deadline_seconds=5) == 1
        assert await archive.delete_expired(datetime.now(UTC), 9, 5)
        found = await check_archive(load_settings(database_url=pooled_url))
        assert {finding.status for finding in found} == {Status.OK}
        async with AsyncExitStack() as stack:
            # Two transactions at a time, so that they have both of its connections to the server.
            servers = [await stack.enter_async_context(connected(pooled_url)) for _ in range(2)]
            for server in servers:
                await stack.enter_async_context(server.transaction())
            assert len({await server.fetchval("SELECT pg_backend_pid()") for server in servers}) == 2
            for server in servers:
                assert await server.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0
                for planner in ("enable_nestloop", "enable_seqscan", "enable_bitmapscan", "jit"):
                    [setting] = await server.fetch(
                        "SELECT setting = boot_val, source FROM pg_settings WHERE name = $1", planner
                    )
                    assert tuple(setting) == (True, "default"), planner
                assert await server.fetchval(ADVISORY_LOCKS) == 0
                assert await server.fetchval("SELECT count(*) FROM pg_class WHERE relpersistence = 't'") == 0


@pytest.mark.release
async def test_a_service_works_through_a_pooler(
    pooled_url: str, redis_url: str, kafka_bootstrap_servers: str, batch: str
) -> None:
    settings = {"redis_url": redis_url, "kafka_bootstrap_servers": kafka_bootstrap_servers}
    async with (
        running_service(**settings, database_url=pooled_url) as service,
        Orchestrator(service.base) as orchestrator,
        anyio.create_task_group() as group,
    ):
        # More at a time than the pooler has connections.
        for phase in ("spellcheck", "nlp", "cj_assessment", "ai_feedback"):
            group.start_soon(orchestrator.complete, batch, phase)
    async with archive_in(pooled_url) as archive:
        assert len(await archive.history(batch, limit=9)) == 4
        assert (await archive.state(batch)).reports.keys() == {"spellcheck", "nlp", "cj_assessment", "ai_feedback"}


async def test_a_lock_left_behind_is_named_and_the_wait_for_it_ends(
    pooled_url: str, database_url: str, batch: str
) -> None:
    archive = unprobed_archive(pooled_url)
    async with connected(database_url) as left_behind:
        await left_behind.execute(f"SELECT pg_advisory_lock({schema._ADVISORY_LOCK})")
        holder = left_behind.get_server_pid()
        ran = await bcs("db", "upgrade", "--wait", "0.1", BCS_DATABASE_URL=pooled_url)
        assert (ran.exit_code, ran.output) == (1, "")
        waiting, refused = ran.error.splitlines()
        assert waiting.startswith("Waiting for up to 0.1 s: ")
        assert refused.startswith("bcs: the schema can't be upgraded now, another upgrade holds the lock: process ")
        assert refused.endswith(f"SELECT pg_terminate_backend({holder}) ends an idle one")
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match="another upgrade holds the lock"):
                    await archive.probe(4)
        assert [entry["event"] for entry in logs] == ["archive_unusable"]
        await left_behind.execute("SELECT pg_advisory_unlock_all()")
        await archive.probe(4)
        await archive.write([consumed(batch)])
    await archive.aclose()


async def test_a_failed_upgrade_leaves_nothing(database_url: str) -> None:
    async with connected(database_url) as direct:
        await direct.execute("CREATE TABLE outcomes (other int)")  # that the second version is to make
        with pytest.raises(asyncpg.DuplicateTableError):
            await schema.upgrade(database_url)
        assert await direct.fetchval(TABLES) == 1
        await direct.execute("DROP TABLE outcomes")
        assert await schema.upgrade(database_url) == schema.Upgraded(None, HEAD)


async def test_a_waiting_upgrade_ends_when_it_is_cancelled(database_url: str) -> None:
    async with connected(database_url) as direct:
        await direct.execute("CREATE TABLE bcs_schema_version (version_num varchar(32) PRIMARY KEY)")
        async with direct.transaction():
            await direct.execute("LOCK TABLE bcs_schema_version IN EXCLUSIVE MODE")
            with anyio.fail_after(2):
                async with anyio.create_task_group() as group:
                    group.start_soon(schema.upgrade, database_url)
                    await wait_until(lambda: direct.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
                    group.cancel_scope.cancel()
        with anyio.fail_after(20):
            assert (await schema.upgrade(database_url, wait_seconds=20)).after == HEAD


@pytest.mark.release
async def test_an_upgrade_waits_only_briefly_for_a_table_in_use(database_url: str) -> None:
    async with connected(database_url) as direct:
        await direct.execute("CREATE TABLE bcs_schema_version (version_num varchar(32) PRIMARY KEY)")
        async with direct.transaction():
            await direct.execute("LOCK TABLE bcs_schema_version IN EXCLUSIVE MODE")
            with anyio.fail_after(10), pytest.raises(SchemaLocked, match="the tables are in use") as refusal:
                await schema.upgrade(database_url)
            assert not refusal.value.upgrading
            assert [session.pid for session in refusal.value.sessions] == [direct.get_server_pid()]
        assert (await schema.upgrade(database_url)).after == HEAD
