"""`bcs doctor`: checks everything that the service needs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import anyio
import structlog
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bcs.cli.options import PANEL, AsJson, single_command
from bcs.cli.output import plain, present, print_json, table
from bcs.config.loading import load_settings
from bcs.config.pipelines import pipelines_of
from bcs.config.settings import InvalidSettings, Settings
from bcs.config.unknown import unknown_secret_files, unknown_variables
from bcs.errors import ConfigurationError
from bcs.ops.doctor import settings_findings
from bcs.ops.doctor.archive_checks import check_archive
from bcs.ops.doctor.findings import Finding, Status, failed, ok
from bcs.ops.doctor.kafka_checks import check_kafka
from bcs.ops.doctor.redis_checks import check_redis
from bcs.ops.doctor.service_checks import check_service
from bcs.ops.wording import counted
from bcs.runtime import running

EXIT_FAILED = 1
_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red"}

app = single_command()


@app.command(rich_help_panel=PANEL)
def doctor(as_json: AsJson = False) -> None:
    """Check settings, Redis, PostgreSQL, Kafka and the clocks, and show how to fix each problem.

    Uses the servers in the BCS_* environment variables, and changes nothing. Exits 1 if a check failed, else 0, also
    with warnings.
    """
    # The findings have all details; log lines would only repeat them.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    findings = examine()
    healthy = all(finding.status is not Status.FAILED for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        present(_page(findings))
    if not healthy:
        raise typer.Exit(EXIT_FAILED)


def examine() -> list[Finding]:
    """Run all checks. A failed check prevents another check only if that one needs its result."""
    unknown = settings_findings.unknown(unknown_variables(os.environ))
    try:
        settings = load_settings()
    except InvalidSettings as error:
        wrong = [
            failed("settings", f"{variable}: {problem}", f"correct {variable}") for variable, problem in error.problems
        ]
        return [
            *wrong,
            *unknown,
            failed("redis, postgresql, kafka", "not checked: the settings are invalid", "correct the settings first"),
        ]
    url, service = check_service(settings)
    return [
        ok("settings", f"valid, for {settings.environment}"),
        *unknown,
        *settings_findings.unknown(unknown_secret_files(settings)),
        *settings_findings.for_drills_only(settings),
        *settings_findings.callers(settings),
        _pipelines(settings),
        service,
        *running.run(_servers, settings, url),
    ]


def _pipelines(settings: Settings) -> Finding:
    try:
        definitions = pipelines_of(settings)
    except ConfigurationError as error:
        problem = "; ".join(text for _, text in error.problems) if isinstance(error, InvalidSettings) else str(error)
        return failed("pipelines", problem, "correct the file; `bcs pipelines validate` checks it")
    return ok(
        "pipelines", f"{counted(len(definitions.names), 'name')} can be requested: {', '.join(definitions.names)}"
    )


async def _servers(settings: Settings, service: str | None) -> list[Finding]:
    redis: list[Finding] = []
    archive: list[Finding] = []
    kafka: list[Finding] = []

    async def ask_redis() -> None:
        redis.extend(await check_redis(settings))

    async def ask_postgresql() -> None:
        archive.extend(await check_archive(settings))

    async def ask_kafka() -> None:
        kafka.extend(await check_kafka(settings, service))

    async with anyio.create_task_group() as group:
        group.start_soon(ask_redis)
        group.start_soon(ask_postgresql)
        group.start_soon(ask_kafka)
    return redis + archive + kafka


def _page(findings: Sequence[Finding]) -> RenderableType:
    lines = table("status", "check", "found")
    for finding in findings:
        fix = Text.assemble(". Fix: ", plain(finding.fix)) if finding.fix else Text()
        status = Text(finding.status.value, _STYLES[finding.status])
        lines.add_row(status, plain(finding.check), plain(finding.found) + fix)
    counts = Counter(finding.status for finding in findings)
    warnings = counted(counts[Status.WARNING], "warning")
    return Group(lines, Text(), Text(f"{counts[Status.OK]} ok, {warnings}, {counts[Status.FAILED]} failed"))
