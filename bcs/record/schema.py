"""Brings the schema of the record up to date, whoever else does the same at the same time."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import anyio.to_thread
import asyncpg

from bcs.record.migrations import HEAD

# Any number serves; it must never change, or two releases would not see each other's lock.
_ADVISORY_LOCK = 4_002_110_001
_LOCK_TIMEOUT_MS = 60_000


async def is_current(connection: asyncpg.Connection) -> bool:
    """Whether the schema is that of this release, or of one that this release does not know and that must be newer."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return False
    version = await connection.fetchval("SELECT version_num FROM alembic_version")
    return version is not None and version >= HEAD


async def upgrade(url: str) -> None:
    """Apply the versions that are missing; replicas that start together do so one after the other.

    Runs in a thread: Alembic is synchronous, and to import it takes a while. Cancellation waits until it has ended.

    :param url: of the database.
    :raises OSError: the database is out of reach.
    :raises SQLAlchemyError: it refused a statement; no version is applied in part.
    """
    await anyio.to_thread.run_sync(partial(asyncio.run, _upgrade(url)))


async def _upgrade(url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import Connection, text
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))

    def apply(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=partial(asyncpg.connect, url), poolclass=NullPool
    )
    try:
        async with engine.connect() as connection:
            await connection.execute(text(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}"))
            # Of the session, not of a transaction: each version has a transaction of its own. It ends with the session.
            await connection.execute(text(f"SELECT pg_advisory_lock({_ADVISORY_LOCK})"))
            await connection.commit()
            await connection.run_sync(apply)
    finally:
        await engine.dispose()
