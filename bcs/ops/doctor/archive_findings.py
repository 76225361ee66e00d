"""Findings about the archive, and about the entries that wait for it. Pure."""

from __future__ import annotations

from bcs.ops.doctor.findings import Finding, failed, ok, warning
from bcs.ops.wording import counted
from bcs.storage.postgres.migrations import HEAD

_OLD_SECONDS = 60.0


def schema(version: str | None, problem: str | None) -> Finding:
    """Checks that the tables have the schema of this release, or that the service can upgrade them.

    :param version: the version of the schema; None where there is no schema.
    :param problem: why the service's user can't upgrade the schema; None without a known problem.
    """
    check = "postgresql schema"
    if version is None or version < HEAD:
        found = f"version {version}, and this release needs {HEAD}" if version else "there are no tables yet"
        if problem:
            fix = "run `bcs db upgrade` as another user, and GRANT the service's user its rights (docs/deploying.md)"
            return failed(check, f"{found}, and {problem}", fix)
        return warning(check, found, "start the service, which upgrades it, or run `bcs db upgrade`")
    return ok(
        check, f"version {version}" if version == HEAD else f"version {version}, newer than this release's {HEAD}"
    )


def writes(problem: str | None) -> list[Finding]:
    """Checks that the service can write.

    :param problem: why the service can't write; None without a known problem.
    """
    fix = "check the server and the rights of the user in BCS_DATABASE_URL: until then facts wait in Redis"
    return [failed("postgresql writes", problem, fix)] if problem else []


def connections(allowed: int | None, needed: int) -> list[Finding]:
    """Checks that a replica can open its connections.

    :param allowed: how many connections are allowed; None for no limit.
    :param needed: how many connections one replica opens.
    """
    if allowed is None or allowed >= needed:
        return []
    found = f"{allowed} allowed for this user or this database, and each replica opens up to {needed}"
    fix = "raise the CONNECTION LIMIT, or lower BCS_DATABASE_MAX_CONNECTIONS"
    return [warning("postgresql connections", found, fix)]


def backlog(length: int, oldest_seconds: float | None, limit: int) -> Finding:
    """Checks that entries reach the archive.

    :param oldest_seconds: how long the oldest entry has waited; None where that is unknown.
    :param limit: how many entries may wait.
    """
    check = "archive backlog"
    if not length:
        return ok(check, "no entry waits for PostgreSQL")
    oldest = "" if oldest_seconds is None else f", the oldest for {max(0.0, oldest_seconds):.0f} s"
    found = f"{_entries(length)} for PostgreSQL{oldest}"
    if length >= limit:
        fix = "start PostgreSQL and the service: no fact is accepted until some entries are written"
        return failed(check, f"{found}; it is full", fix)
    if oldest_seconds is None or oldest_seconds > _OLD_SECONDS:
        return warning(check, found, "make sure that the service runs and reaches PostgreSQL")
    return ok(check, found)


def left_behind(length: int) -> Finding:
    """Reports entries that wait for an archive although the settings have none."""
    found = f"{_entries(length)} for an archive, and the settings have none"
    return warning("archive backlog", found, "set BCS_DATABASE_URL again: Redis loses these facts when batches expire")


def parked(length: int, key: str) -> Finding:
    """Reports entries that PostgreSQL will never accept."""
    check = "archive parked"
    if not length:
        return ok(check, "no entry is parked")
    found = f"{counted(length, 'entry', 'entries')} parked, because PostgreSQL will never accept them"
    return failed(check, found, f"read them (XRANGE {key} - +; the field `problem` has the reason), then XDEL them")


def _entries(count: int) -> str:
    return "1 entry waits" if count == 1 else f"{count} entries wait"
