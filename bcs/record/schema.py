"""Brings the schema of the record up to date, whoever else does the same at the same time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio.to_thread
import asyncpg

from bcs.record.migrations import HEAD, VERSION_TABLE

# Any number serves; it must never change, or two releases would not see each other's lock.
_ADVISORY_LOCK = 4_002_110_001
_LOOK_SECONDS = 0.2
_CONNECT_SECONDS = 10.0
_TABLES = ("batches", "essays", "marks", "outcomes", "reports", "invalidations", "history", "announcements")
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
    if await connection.fetchval("SELECT to_regclass($1)", VERSION_TABLE) is None:
        return None
    version: str | None = await connection.fetchval(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 (ours)
    return version


def is_enough(version: str | None) -> bool:
    """Whether a version is that of this release, or one that this release does not know and that must be newer."""
    return version is not None and version >= HEAD


async def is_current(connection: asyncpg.Connection) -> bool:
    """Whether the schema is one that this release can use."""
    return is_enough(await version_of(connection))


async def may_write(connection: asyncpg.Connection) -> bool:
    """Whether this user has the rights that it takes to keep a record."""
    rights: list[bool] = [
        await connection.fetchval("SELECT has_table_privilege($1, $2)", table, right)
        for table in _TABLES
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE")
    ]
    return all(rights)


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


async def upgrade(url: str) -> Upgraded:
    """Apply the versions that are missing; replicas that start together do so one after the other.

    Runs in a thread: Alembic is synchronous, and to import it takes a while. Cancellation leaves the thread to itself
    for what it is just doing, which is not to wait for others; no version is applied in part then either.

    :param url: of the database.
    :raises OSError: the database is out of reach.
    :raises SQLAlchemyError: it refused a statement; no version is applied in part.
    """
    while True:
        done = await anyio.to_thread.run_sync(lambda: asyncio.run(_upgrade(url)), abandon_on_cancel=True)
        if done:
            return done
        # Not in the thread, which a stop would have to wait for.
        await anyio.sleep(_LOOK_SECONDS)


async def _upgrade(url: str) -> Upgraded | None:
    """The same, or None while somebody else is at it."""
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection, text
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))

    def apply(connection: Connection) -> Upgraded:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        before = context.get_current_revision()
        # Alembic would take the transaction of this look for one of ours, and leave it to us to commit.
        connection.rollback()
        if before is not None and is_enough(before):
            return Upgraded(before, before)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return Upgraded(before, HEAD)

    for name in _LOGS:
        logging.getLogger(name).setLevel(logging.WARNING)
    connect = partial(asyncpg.connect, url, timeout=_CONNECT_SECONDS, target_session_attrs="read-write")
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            # Of the session, not of a transaction: each version has a transaction of its own. It ends with the session.
            locked = await connection.scalar(text(f"SELECT pg_try_advisory_lock({_ADVISORY_LOCK})"))
            await connection.commit()
            return await connection.run_sync(apply) if locked else None
    finally:
        await engine.dispose()
