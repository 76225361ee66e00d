"""Databases on a PostgreSQL that others use as well, and records in them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import asyncpg

from bcs.config.loading import load_settings
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.postgres.opening import open_archive

# Far longer than any statement takes, also on a machine that has much to do.
_DEADLINE_SECONDS = 4.0


@contextmanager
def database(postgres_url: str, options: str = "") -> Iterator[str]:
    """An empty database; whoever is still connected at the end is thrown out.

    :param options: of `CREATE DATABASE`, beside its template.
    """

    name = f"test-{uuid.uuid4().hex}"

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(postgres_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    # Nobody is ever connected to template0, which would be an obstacle.
    asyncio.run(execute(f'CREATE DATABASE "{name}" TEMPLATE template0 {options}'))
    try:
        yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    finally:
        asyncio.run(execute(f'DROP DATABASE "{name}" WITH (FORCE)'))


def unprobed_archive(database_url: str, *, deadline_seconds: float = _DEADLINE_SECONDS) -> PostgresArchive:
    """A record that counts as out of reach until it is probed."""
    return open_archive(load_settings(database_url=database_url, database_deadline_seconds=deadline_seconds))


@asynccontextmanager
async def archive_in(database_url: str) -> AsyncIterator[PostgresArchive]:
    """A record that is reachable, with the schema of this release."""
    record = unprobed_archive(database_url)
    try:
        await record.probe(_DEADLINE_SECONDS)
        yield record
    finally:
        await record.aclose()
