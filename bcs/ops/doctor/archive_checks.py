"""Queries PostgreSQL for the checks of `bcs doctor`."""

from __future__ import annotations

from bcs.config.settings import Settings
from bcs.errors import DatabaseUnusable, StoreUnavailable
from bcs.ops.doctor import archive_findings as findings_of
from bcs.ops.doctor.findings import Finding, clock_of, failed, ok
from bcs.storage.postgres.opening import NoDatabaseNamed, PostgresClientMissing, named_database


async def check_archive(settings: Settings) -> list[Finding]:
    """All checks of PostgreSQL, with the connections and deadlines of the service."""
    check = "postgresql"
    try:
        url = named_database(settings)
    except NoDatabaseNamed:
        return [ok(check, "BCS_DATABASE_URL is not set: there is no archive")]
    except PostgresClientMissing as error:
        return [failed(check, "the extra `postgres` is not installed", error.remedy)]
    if settings.use_mock_repository:
        return [ok(check, "not checked: with BCS_USE_MOCK_REPOSITORY there is no archive")]
    from asyncpg import PostgresError

    from bcs.storage.postgres.gateway import CONNECTIONS_FOR_PROBE
    from bcs.storage.postgres.inspecting import inspect
    from bcs.storage.postgres.schema import is_new_enough

    try:
        inspected = await inspect(url, settings.database_deadline_seconds)
    except StoreUnavailable as error:
        cause = error.cause.rstrip(". ")
        if isinstance(error.__cause__, PostgresError):
            fix = "check the user in BCS_DATABASE_URL, and GRANT that user what the service needs (docs/deploying.md)"
            return [failed(check, f"it answers, and refuses: {cause}", fix)]
        return [failed(check, f"out of reach: {cause}", "check PostgreSQL, and BCS_DATABASE_URL")]
    except DatabaseUnusable as error:
        return [failed(check, f"it is {error.problem}", error.fix)]
    is_current = is_new_enough(inspected.schema)
    return [
        ok(check, f"reachable, PostgreSQL {inspected.server}"),
        findings_of.schema(inspected.schema, None if is_current else inspected.problem),
        *findings_of.writes(inspected.problem if is_current else None),
        *findings_of.connections(inspected.connections, settings.database_max_connections + CONNECTIONS_FOR_PROBE),
        clock_of("postgresql clock", "PostgreSQL", inspected.ahead_seconds),
    ]
