"""Looks at the record's database once, for those who look after it; nothing is changed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import asyncpg

from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.postgres.schema import is_enough, problem_with_upgrade, problem_with_writes, version_of


@dataclass(frozen=True, slots=True)
class Inspected:
    """A database that answers.

    :param server: its version.
    :param schema: the version of the record's schema; None where there is none yet.
    :param problem: why the service's user can't write, or can't upgrade a schema that is missing or too old; None
        where nothing is known to be in the way.
    :param connections: how many connections the role or the database allows; None where neither has such a limit.
    :param ahead_seconds: how far its clock is ahead of this machine's.
    """

    server: str
    schema: str | None
    problem: str | None
    connections: int | None
    ahead_seconds: float


async def inspect(url: str, deadline_seconds: float) -> Inspected:
    """Look at a database over a connection as the service makes it, with the service's deadlines.

    :param deadline_seconds: for connecting and each statement.
    :raises StoreUnavailable: it does not answer, or not in time.
    :raises DatabaseUnusable: it can't keep the record.
    """
    gateway = ArchiveGateway(url, max_connections=1, deadline_seconds=deadline_seconds)
    try:
        server = await gateway.look(_server, deadline_seconds)
        schema = await gateway.look(version_of, deadline_seconds)
        problem = await gateway.look(
            problem_with_writes if is_enough(schema) else problem_with_upgrade, deadline_seconds
        )
        connections = await gateway.look(_connections, deadline_seconds)
        return Inspected(server, schema, problem, connections, await gateway.look(_ahead_seconds, deadline_seconds))
    finally:
        await gateway.aclose()


async def _server(connection: asyncpg.Connection) -> str:
    version: str = await connection.fetchval("SELECT current_setting('server_version')")
    return version


async def _connections(connection: asyncpg.Connection) -> int | None:
    limit: int | None = await connection.fetchval(
        "SELECT min(number) FROM (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user AND NOT rolsuper "
        "UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database()) limits(number) "
        "WHERE number >= 0"
    )
    return limit


async def _ahead_seconds(connection: asyncpg.Connection) -> float:
    asked_at = time.time()
    server_time: float = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    return server_time - (asked_at + time.time()) / 2
