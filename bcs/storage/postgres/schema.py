"""Brings the schema of the record up to date, whoever else does the same at the same time."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
import asyncpg

from bcs.errors import SchemaLocked, Session
from bcs.storage.postgres.connecting import TAKES_NO_WRITES, ArchiveConnection, Connector
from bcs.storage.postgres.migrations import HEAD, VERSION_TABLE

# Any number serves; it must never change, or two releases would not see each other's lock.
_ADVISORY_LOCK = 4_002_110_001
_LOOK_SECONDS = 0.2
_CONNECT_SECONDS = 10.0
_TABLES = ("batches", "essays", "marks", "outcomes", "phase_reports", "invalidations", "history", "announcements")
_FORMER_TABLES = ("batch_marks", "reports")
# Far longer than a statement over the largest record takes.
_STATEMENT_SECONDS = 3600.0
# While it waits for a table, whatever else wants that table waits behind it. Limits that a role has for requests are
# none for an upgrade, and it does read whole tables.
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
# What they say of each start, nobody asked for.
_LOGS = ("alembic.runtime.migration", "alembic.runtime.plugins")


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade did.

    :param before: the version that it found; None where there was none.
    :param after: the version that it left.
    """

    before: str | None
    after: str


async def version_of(connection: asyncpg.Connection) -> str | None:
    """The schema's version; None where there is no schema yet."""
    # With pg_class in the query: to_regclass() alone may go by what this session remembers, which is nothing, although
    # somebody else has made the table since.
    if await connection.fetchval("SELECT oid FROM pg_class WHERE oid = to_regclass($1)", VERSION_TABLE) is None:
        return None
    version: str | None = await connection.fetchval(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 (ours)
    return version


def is_enough(version: str | None) -> bool:
    """Whether a version is that of this release, or one that this release does not know and that must be newer."""
    return version is not None and version >= HEAD


async def is_current(connection: asyncpg.Connection) -> bool:
    """Whether the schema is one that this release can use."""
    return is_enough(await version_of(connection))


async def problem_with_writes(connection: asyncpg.Connection) -> str | None:
    """Why nothing can be written now; None where it can. A pooler may lead to a server that became a standby.

    :param connection: to a database with the schema.
    """
    [(read_only, has_rights)] = await connection.fetch(
        "SELECT current_setting('transaction_read_only') = 'on', bool_and(has_table_privilege(name, rights)) "
        "FROM unnest($1::text[]) name, unnest($2::text[]) rights",
        _TABLES,
        ("SELECT", "INSERT", "UPDATE", "DELETE"),
    )
    if read_only:
        return TAKES_NO_WRITES
    return None if has_rights else "this user may not write to the archive's tables"


async def problem_with_upgrade(connection: asyncpg.Connection) -> str | None:
    """Why this user can't bring the schema up to date; None where nothing is known to be in the way.

    :param connection: to a database whose schema is missing, or of an older release.
    """
    [(read_only, schema, may_create, owned_by_others)] = await connection.fetch(
        "SELECT current_setting('transaction_read_only') = 'on', current_schema(), "
        "has_schema_privilege(current_schema(), 'CREATE'), "
        "ARRAY(SELECT relname::text FROM pg_class WHERE NOT pg_has_role(relowner, 'USAGE') "
        "AND oid IN (SELECT to_regclass(name) FROM unnest($1::text[]) name) ORDER BY relname)",
        (VERSION_TABLE, *_TABLES, *_FORMER_TABLES),
    )
    if read_only:
        return TAKES_NO_WRITES
    if schema is None:
        return "this user may use no schema of its search_path, and so can't create the archive's tables"
    if not may_create:
        return f"this user may not create the archive's tables in the schema {schema}"
    if owned_by_others:
        return f"this user may not alter the archive's tables, which belong to another user: {owned_by_others[0]}, …"
    return None


async def identity(connection: asyncpg.Connection) -> str | None:
    """What is another one once the tables were made anew, restored, or taken over by a standby; None without tables.

    Each of these may lack what was acknowledged before. A standby and a restored server begin a timeline of their own.
    """
    table: int | None = await connection.fetchval("SELECT to_regclass('history')::oid")
    if table is None:
        return None
    try:
        timeline = await connection.fetchval("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")
    except asyncpg.PostgresError:
        timeline = None  # not everyone may ask, and not every service that speaks like PostgreSQL knows
    return f"{table}.{timeline}"


async def upgrade(
    url: str, *, wait_seconds: float = 0.0, waiting: Callable[[SchemaLocked], None] = lambda _: None
) -> Upgraded:
    """Apply the versions that are missing, all or none; replicas that start together do so one after the other.

    Cancellation ends it at once, and nothing is changed then.

    :param url: of the database.
    :param wait_seconds: how long to try again while another session is in the way.
    :param waiting: is called with what is in the way, before each new try.
    :raises SchemaLocked: another session was in the way for so long.
    :raises OSError: the database is out of reach.
    :raises PostgresError: it refused a statement.
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
        await anyio.sleep(_LOOK_SECONDS)


async def _upgrade(connector: Connector) -> Upgraded:
    # To import Alembic takes a while. All else runs here, where it can be cancelled: a thread that waits could not be.
    apply = await anyio.to_thread.run_sync(_load, abandon_on_cancel=True)
    connection = await connector.connect(connect_seconds=_CONNECT_SECONDS, statement_seconds=_STATEMENT_SECONDS)
    try:
        before = await version_of(connection)
        if before is not None and is_enough(before):
            return Upgraded(before, before)
        # Not as a block: at its end it would wait for an answer, whatever has happened.
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(_FOR_AN_UPGRADE)
        # Of the transaction, and not of the session: a pooler would give the session's lock to somebody else.
        if not await connection.fetchval(f"SELECT pg_try_advisory_xact_lock({_ADVISORY_LOCK})"):
            await transaction.rollback()
            raise SchemaLocked(await _sessions(connection, _HOLDS_THE_LOCK), upgrading=True)
        before = await version_of(connection)
        if before is not None and is_enough(before):
            return Upgraded(before, before)
        try:
            await apply(connection)
        except asyncpg.LockNotAvailableError:
            await transaction.rollback()
            raise SchemaLocked(await _sessions(connection, _USES_A_TABLE), upgrading=False) from None
        await transaction.commit()
        return Upgraded(before, HEAD)
    finally:
        # Without a farewell, which may take as long as the database is frozen. What did not end well is undone.
        connection.terminate()


async def _sessions(connection: ArchiveConnection, condition: str) -> tuple[Session, ...]:
    return tuple(Session(*row) for row in await connection.fetch(_SESSIONS.format(condition=condition)))


def _load() -> Callable[[ArchiveConnection], Awaitable[None]]:
    """Import Alembic, and return what applies the versions that are missing within a transaction that is open."""
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
            # SQLAlchemy neither begins nor ends a transaction, and does not close what others have opened.
            isolation_level="AUTOCOMMIT",
            poolclass=StaticPool,
            pool_reset_on_return=None,
            # A statement with a name would stay on a pooler's connection.
            connect_args={
                "async_creator_fn": opened,
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": str,
            },
        )
        try:
            async with engine.connect() as of_sqlalchemy:
                await of_sqlalchemy.run_sync(run)
        except DBAPIError as error:
            raise (error.orig and error.orig.__cause__) or error from None

    return apply
