"""Upgrades the archive's schema; several processes may do this at the same time."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
import asyncpg

from bcs.config.store_urls import StoreUrl
from bcs.errors import SchemaLocked, Session
from bcs.storage.postgres.connecting import ACCEPTS_NO_WRITES, ArchiveConnection, Connector
from bcs.storage.postgres.migrations import HEAD, VERSION_TABLE

# Any number is good. It must never change, or two releases would not see each other's lock.
_ADVISORY_LOCK = 4_002_110_001
_RETRY_SECONDS = 0.2
_CONNECT_SECONDS = 10.0
_TABLES = (
    "batches",
    "essays",
    "marks",
    "outcomes",
    "phase_reports",
    "invalidations",
    "phase_definitions",
    "history",
    "announcements",
)
_FORMER_TABLES = ("batch_marks", "reports")
# Far longer than a statement over the largest record takes.
_STATEMENT_SECONDS = 3600.0
# While an upgrade waits for a table, all other sessions that need the table wait behind it, so it waits briefly. The
# time limits of a role are meant for requests and not for an upgrade. An upgrade reads whole tables.
_FOR_AN_UPGRADE = (
    "SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = 0; "
    "SET LOCAL idle_in_transaction_session_timeout = 0; "
    "SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = on"
)
_OF_THIS_DATABASE = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
_HOLDS_THE_LOCK = (
    f"locktype = 'advisory' AND {_OF_THIS_DATABASE} AND objsubid = 1 "
    f"AND (classid::bigint << 32) + objid::bigint = {_ADVISORY_LOCK}"
)
_NAMES = ", ".join(f"'{name}'" for name in (VERSION_TABLE, *_TABLES, *_FORMER_TABLES))
_USES_A_TABLE = f"locktype = 'relation' AND {_OF_THIS_DATABASE} AND relation::regclass::text IN ({_NAMES})"
_SESSIONS = """
SELECT pid, application_name, state FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND pid IN (SELECT pid FROM pg_locks WHERE granted AND {condition})
ORDER BY pid LIMIT 5
"""
# These loggers write lines at each start that no operator needs.
_LOGS = ("alembic.runtime.migration", "alembic.runtime.plugins")


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The result of an upgrade.

    :param before: the version before; None where there was no schema.
    :param after: the version after.
    """

    before: str | None
    after: str


async def version_of(connection: asyncpg.Connection) -> str | None:
    """The schema's version; None where there is no schema yet."""
    # With pg_class in the query, because to_regclass() alone may use this session's cache, which does not have a table
    # that another session has created since.
    if await connection.fetchval("SELECT oid FROM pg_class WHERE oid = to_regclass($1)", VERSION_TABLE) is None:
        return None
    version: str | None = await connection.fetchval(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 (the table's name is a constant)
    return version


def is_new_enough(version: str | None) -> bool:
    """True for the version of this release, and for an unknown version, which must be newer."""
    return version is not None and version >= HEAD


async def is_current(connection: asyncpg.Connection) -> bool:
    """True if this release can use the schema."""
    return is_new_enough(await version_of(connection))


async def write_problem(connection: asyncpg.Connection) -> str | None:
    """Why this user can't write now; None where it can. A pooler may lead to a server that became a standby.

    :param connection: a connection to a database with the schema.
    """
    [(read_only, has_rights)] = await connection.fetch(
        "SELECT current_setting('transaction_read_only') = 'on', bool_and(has_table_privilege(name, rights)) "
        "FROM unnest($1::text[]) name, unnest($2::text[]) rights",
        _TABLES,
        ("SELECT", "INSERT", "UPDATE", "DELETE"),
    )
    if read_only:
        return ACCEPTS_NO_WRITES
    return None if has_rights else "this user may not write to the archive's tables"


async def upgrade_problem(connection: asyncpg.Connection) -> str | None:
    """Why this user can't upgrade the schema; None without a known problem.

    :param connection: a connection to a database whose schema is missing or outdated.
    """
    [(read_only, schema, may_create, owned_by_others)] = await connection.fetch(
        "SELECT current_setting('transaction_read_only') = 'on', current_schema(), "
        "has_schema_privilege(current_schema(), 'CREATE'), "
        "ARRAY(SELECT relname::text FROM pg_class WHERE NOT pg_has_role(relowner, 'USAGE') "
        "AND oid IN (SELECT to_regclass(name) FROM unnest($1::text[]) name) ORDER BY relname)",
        (VERSION_TABLE, *_TABLES, *_FORMER_TABLES),
    )
    if read_only:
        return ACCEPTS_NO_WRITES
    if schema is None:
        return "this user may use no schema of its search_path, and so can't create the archive's tables"
    if not may_create:
        return f"this user may not create the archive's tables in the schema {schema}"
    if owned_by_others:
        return f"this user may not alter the archive's tables, which belong to another user: {owned_by_others[0]}, …"
    return None


async def identity(connection: asyncpg.Connection) -> str | None:
    """Identifies the tables: changes when they are recreated, restored, or a standby takes over; None without tables.

    In each of these cases the tables may lack acknowledged data. A promoted standby and a restored server start a new
    timeline.
    """
    table: int | None = await connection.fetchval("SELECT to_regclass('history')::oid")
    if table is None:
        return None
    try:
        timeline = await connection.fetchval("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")
    except asyncpg.PostgresError:
        timeline = None  # some users may not read it, and some services that imitate PostgreSQL do not have it
    return f"{table}.{timeline}"


async def upgrade(
    url: StoreUrl | str, *, wait_seconds: float = 0.0, waiting: Callable[[SchemaLocked], None] = lambda _: None
) -> Upgraded:
    """Apply the missing versions, all or none; replicas that start together upgrade one after the other.

    Cancellation ends the upgrade at once, and nothing is changed then.

    :param url: the URL of the database; a text does not change.
    :param wait_seconds: how long to retry while another session blocks the upgrade.
    :param waiting: called before each retry with the reason.
    :raises SchemaLocked: another session blocked the upgrade all the time.
    :raises OSError: the database is out of reach.
    :raises PostgresError: the database refused a statement.
    """
    connector = Connector(url)
    deadline: float | None = None
    while True:
        try:
            return await _upgrade(connector)
        except SchemaLocked as locked:
            if deadline is None:
                deadline = anyio.current_time() + wait_seconds
            if anyio.current_time() >= deadline:
                raise
            waiting(locked)
        await anyio.sleep(_RETRY_SECONDS)


async def _upgrade(connector: Connector) -> Upgraded:
    # Only the slow import of Alembic runs in a thread. All else runs here, because a thread could not be cancelled.
    apply = await anyio.to_thread.run_sync(_load, abandon_on_cancel=True)
    connection = await connector.connect(connect_seconds=_CONNECT_SECONDS, statement_seconds=_STATEMENT_SECONDS)
    try:
        before = await version_of(connection)
        if before is not None and is_new_enough(before):
            return Upgraded(before, before)
        # Not as a context manager, which would wait for an answer at its end, also after a failure.
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(_FOR_AN_UPGRADE)
        # A lock of the transaction, not of the session, because a pooler would give the session to another client.
        if not await connection.fetchval(f"SELECT pg_try_advisory_xact_lock({_ADVISORY_LOCK})"):
            await transaction.rollback()
            raise SchemaLocked(await _sessions(connection, _HOLDS_THE_LOCK), upgrading=True)
        before = await version_of(connection)
        if before is not None and is_new_enough(before):
            return Upgraded(before, before)
        try:
            await apply(connection)
        except asyncpg.LockNotAvailableError:
            await transaction.rollback()
            raise SchemaLocked(await _sessions(connection, _USES_A_TABLE), upgrading=False) from None
        await transaction.commit()
        return Upgraded(before, HEAD)
    finally:
        # Closed without a last message, which would wait while the database is frozen. The server rolls back an open
        # transaction.
        connection.terminate()


async def _sessions(connection: ArchiveConnection, condition: str) -> tuple[Session, ...]:
    return tuple(Session(*row) for row in await connection.fetch(_SESSIONS.format(condition=condition)))


def _load() -> Callable[[ArchiveConnection], Awaitable[None]]:
    """Import Alembic, and return a function that applies the missing versions within an open transaction."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import StaticPool

    for name in _LOGS:
        logging.getLogger(name).setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))

    def run(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async def apply(connection: ArchiveConnection) -> None:
        async def opened() -> ArchiveConnection:
            return connection

        engine = create_async_engine(
            "postgresql+asyncpg://",
            # SQLAlchemy must not begin or end a transaction, and must not close our connection.
            isolation_level="AUTOCOMMIT",
            poolclass=StaticPool,
            pool_reset_on_return=None,
            # A named statement would stay on a pooler's connection.
            connect_args={
                "async_creator_fn": opened,
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": str,
            },
        )
        try:
            async with engine.connect() as sqlalchemy_connection:
                await sqlalchemy_connection.run_sync(run)
        except DBAPIError as error:
            raise (error.orig and error.orig.__cause__) or error from None

    return apply
