"""`bcs db`: upgrades the schema of the archive, and rebuilds its facts from Kafka."""

from __future__ import annotations

import logging
from typing import Annotated

import structlog
import typer

from bcs.cli.options import PANEL, AsJson, command_group
from bcs.cli.output import print_json
from bcs.config.loading import load_settings
from bcs.config.pipelines import pipelines_of
from bcs.errors import SchemaLocked, StoreRefused
from bcs.runtime import running
from bcs.storage.postgres.opening import named_database

# A shell adds this number to the signal that ended a process.
_SIGNALLED = 128

app = command_group("db")

WaitSeconds = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="How long to wait while another session blocks the upgrade; default 60",
        show_default=False,
    ),
]


@app.callback(rich_help_panel=PANEL)
def db() -> None:
    """The archive in PostgreSQL."""


@app.command()
def upgrade(as_json: AsJson = False, wait_seconds: WaitSeconds = 60.0) -> None:
    """Upgrade the archive's schema.

    The service does the same at its start, if its user may. Several processes may run this at the same time, also while
    services run: they upgrade one after the other, and only the first finds something to upgrade.
    """
    # The error has all details, and the output may have to be JSON.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    settings = load_settings()
    url = named_database(settings)
    from bcs.storage.postgres import schema
    from bcs.storage.postgres.gateway import NO_ANSWER, cause_of
    from bcs.storage.postgres.inspecting import inspect

    shown: set[tuple[int, ...]] = set()

    def waiting(locked: SchemaLocked) -> None:
        holders = tuple(session.pid for session in locked.sessions)
        if holders not in shown:
            shown.add(holders)
            typer.echo(f"Waiting for up to {wait_seconds:g} s: {locked}", err=True)

    async def upgraded() -> schema.Upgraded:
        # The inspection comes first, because its deadlines are shorter than those of the upgrade.
        await inspect(url, settings.database_deadline_seconds)
        try:
            return await schema.upgrade(url, wait_seconds=wait_seconds, waiting=waiting)
        except NO_ANSWER as error:
            raise StoreRefused("postgresql", cause_of(error, url)) from error

    outcome = running.run(upgraded)
    if as_json:
        print_json({"from": outcome.before, "to": outcome.after})
    elif outcome.before == outcome.after:
        typer.echo(f"The schema is already current: version {outcome.after}.")
    else:
        origin = f"from version {outcome.before}" if outcome.before else "from nothing"
        typer.echo(f"The schema is upgraded {origin} to version {outcome.after}.")


@app.command()
def rebuild(as_json: AsJson = False) -> None:
    """Write the facts that Kafka still has to the archive again; the service may run meanwhile.

    For an archive that was lost, or added late. Reads the consumed topics from their beginning to their present end,
    older messages first, and invalidates the copies of these batches in Redis. Facts that the archive has already do
    not change, so the command can be stopped and run again. Phase reports and answers are not in Kafka, so they are not
    restored.
    """
    settings = load_settings()
    named_database(settings)
    from bcs.cli.db_progress import RebuildOutput
    from bcs.cli.db_rebuilding import rebuild_until_signalled

    definitions = pipelines_of(settings)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with RebuildOutput(as_json) as output:
        stopped_by = running.run(rebuild_until_signalled, settings, definitions, output.begun)
        output.complete = stopped_by is None
    if stopped_by is not None:
        raise typer.Exit(_SIGNALLED + stopped_by)
