"""Looks at the record's database once, for those who look after it; nothing is changed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio
import asyncpg

from bcs.domain.errors import StoreUnavailable
from bcs.record.connecting import Connector, perform
from bcs.record.gateway import NO_ANSWER, brief
from bcs.record.schema import is_enough, obstacle_to_writes, version_of

_STORE = "postgresql"


@dataclass(frozen=True, slots=True)
class Inspected:
    """A database that answers.

    :param server: its version.
    :param schema: the version of the record's schema; None where there is none yet.
    :param obstacle: why nothing can be written; None where it can, or where the schema is too old to tell.
    :param ahead_seconds: how far its clock is ahead of this machine's.
    """

    server: str
    schema: str | None
    obstacle: str | None
    ahead_seconds: float


async def inspect(url: str, deadline_seconds: float) -> Inspected:
    """Look at a database.

    :param deadline_seconds: for all of it.
    :raises StoreUnavailable: it does not answer, or not in time.
    :raises DatabaseUnusable: it can't keep the record.
    """
    try:
        with anyio.fail_after(deadline_seconds):
            connection = await Connector(url).connect()
            try:
                return await perform(connection, _inspected)
            finally:
                connection.terminate()  # without a farewell, which may take as long as the database is frozen
    except TimeoutError:
        raise StoreUnavailable(_STORE, "no answer in time") from None
    except NO_ANSWER as error:
        raise StoreUnavailable(_STORE, brief(error)) from error


async def _inspected(connection: asyncpg.Connection) -> Inspected:
    server = await connection.fetchval("SELECT current_setting('server_version')")
    schema = await version_of(connection)
    obstacle = await obstacle_to_writes(connection) if is_enough(schema) else None
    asked_at = time.time()
    told = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    return Inspected(server, schema, obstacle, told - (asked_at + time.time()) / 2)
