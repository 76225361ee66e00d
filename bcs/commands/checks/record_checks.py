"""Asks PostgreSQL what `bcs doctor` wants to know of the permanent record."""

from __future__ import annotations

from bcs.commands.checks import record_judgement as judgement
from bcs.commands.checks.findings import Finding, clock_of, failed, ok
from bcs.domain.errors import DatabaseUnusable, StoreUnavailable
from bcs.record.opening import NoDatabaseNamed, PostgresClientMissing, named_database
from bcs.settings import Settings


async def look_at_record(settings: Settings) -> list[Finding]:
    """Everything about PostgreSQL, under the settings' own deadline."""
    check = "postgresql"
    try:
        url = named_database(settings)
    except NoDatabaseNamed:
        return [ok(check, "BCS_DATABASE_URL is not set: no permanent record is kept")]
    except PostgresClientMissing as error:
        return [failed(check, "the extra `postgres` is not installed", error.remedy)]
    if settings.use_mock_repository:
        return [ok(check, "not looked at: with BCS_USE_MOCK_REPOSITORY no permanent record is kept")]
    from bcs.record.inspecting import inspect

    try:
        inspected = await inspect(url, settings.database_deadline_seconds)
    except StoreUnavailable as error:
        return [
            failed(check, f"out of reach: {error.cause.rstrip('. ')}", "see to PostgreSQL, and to BCS_DATABASE_URL")
        ]
    except DatabaseUnusable as error:
        return [failed(check, f"it is {error.problem}", error.fix)]
    return [
        ok(check, f"reachable, PostgreSQL {inspected.server}"),
        judgement.schema(inspected.schema),
        *judgement.writes(inspected.obstacle),
        clock_of("postgresql clock", "PostgreSQL", inspected.ahead_seconds),
    ]
