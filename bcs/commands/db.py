"""`bcs db`: the permanent record's schema, and its facts read from Kafka again."""

from __future__ import annotations

import anyio
import typer

from bcs.commands.options import PANEL, AsJson, command_group
from bcs.commands.output import print_json
from bcs.domain.errors import StoreRefused
from bcs.record.opening import named_database
from bcs.settings import load_settings

app = command_group("db")


@app.callback(rich_help_panel=PANEL)
def db() -> None:
    """The permanent record in PostgreSQL."""


@app.command()
def upgrade(as_json: AsJson = False) -> None:
    """Bring the record's schema up to date.

    The service does the same at its start, if its user may. Several may do it at once, beside services that run: one
    after the other, and only the first has something to do.
    """
    settings = load_settings()
    url = named_database(settings)
    from sqlalchemy.exc import SQLAlchemyError

    from bcs.record import schema
    from bcs.record.gateway import brief
    from bcs.record.inspecting import inspect

    async def upgraded() -> schema.Upgraded:
        # Asked first, since to connect may take a minute otherwise.
        await inspect(url, settings.database_deadline_seconds)
        try:
            return await schema.upgrade(url)
        except SQLAlchemyError as error:
            said = getattr(error, "orig", None) or error
            raise StoreRefused("postgresql", brief(said.__cause__ or said)) from error

    outcome = anyio.run(upgraded)
    if as_json:
        print_json({"from": outcome.before, "to": outcome.after})
    elif outcome.before == outcome.after:
        typer.echo(f"The schema is already current: version {outcome.after}.")
    else:
        origin = f"from version {outcome.before}" if outcome.before else "from nothing"
        typer.echo(f"The schema is upgraded {origin} to version {outcome.after}.")
