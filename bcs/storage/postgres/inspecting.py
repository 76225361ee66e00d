"""Inspects the archive's database for operators; nothing is changed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import asyncpg

from bcs.config.store_urls import StoreUrl
from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.postgres.schema import is_new_enough, upgrade_problem, version_of, write_problem


@dataclass(frozen=True, slots=True)
class Inspected:
    """A database that answers.

    :param server: the server's version.
    :param schema: the version of the archive's schema; None where there is no schema yet.
    :param problem: why the service's user can't write, or can't upgrade a missing or outdated schema; None without a
        known problem.
    :param connections: how many connections the role or the database allows; None where neither has a limit.
    :param ahead_seconds: how far the server's clock is ahead of this machine's.
    """

    server: str
    schema: str | None
    problem: str | None
    connections: int | None
    ahead_seconds: float


async def inspect(url: StoreUrl | str, deadline_seconds: float) -> Inspected:
    """Inspect a database over a connection like the service's, with the service's deadlines.

    :param deadline_seconds: the time for connecting and each statement.
    :raises StoreUnavailable: no answer in time.
    :raises DatabaseUnusable: the database can't hold the archive.
    """
    gateway = ArchiveGateway(url, max_connections=1, deadline_seconds=deadline_seconds)
    try:
        server = await gateway.run_unprobed(_server, deadline_seconds)
        schema = await gateway.run_unprobed(version_of, deadline_seconds)
        problem = await gateway.run_unprobed(
            write_problem if is_new_enough(schema) else upgrade_problem, deadline_seconds
        )
        connections = await gateway.run_unprobed(_connections, deadline_seconds)
        return Inspected(
            server, schema, problem, connections, await gateway.run_unprobed(_ahead_seconds, deadline_seconds)
        )
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
