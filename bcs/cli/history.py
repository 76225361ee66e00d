"""`bcs history`: entries of the histories of all batches."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bcs.cli.archive_reading import find_history
from bcs.cli.batch_history import printed_lines
from bcs.cli.history_filters import Before, EntryLimit, EntryType, below, history_filter
from bcs.cli.options import PANEL, AsJson, command_group
from bcs.cli.output import plain, present, print_json
from bcs.cli.times import Since, Until
from bcs.config.loading import load_settings
from bcs.http.found_history import found_history_document
from bcs.http.parameters import USUAL_ENTRIES
from bcs.ops.wording import counted
from bcs.storage.postgres.history_reader import FoundEntries

app = command_group("history")


@app.callback(rich_help_panel=PANEL)
def history() -> None:
    """Find entries in the histories of all batches."""


@app.command()
def find(
    correlation_id: Annotated[str, typer.Argument(metavar="CORRELATION_ID", show_default=False)],
    since: Since = None,
    until: Until = None,
    entry_type: EntryType = None,
    limit: EntryLimit = USUAL_ENTRIES,
    before: Before = None,
    as_json: AsJson = False,
) -> None:
    """Find all that is recorded under a correlation id: events, phase reports and answers of all batches, newest first.

    Reads the archive in PostgreSQL (BCS_DATABASE_URL); the service need not run.
    """
    wanted = history_filter(since=since, until=until, correlation_id=correlation_id, entry_type=entry_type)
    found = find_history(load_settings(), correlation_id, wanted, before=below(before), limit=limit)
    if as_json:
        print_json(found_history_document(correlation_id, found, found.continues_before))
    else:
        present(_page(correlation_id, found))


def _page(correlation_id: str, found: FoundEntries) -> RenderableType:
    count = len(found.entries)
    shown = f": {counted(count, 'entry', 'entries')}, newest first" if count else ": no such entry"
    parts: list[RenderableType] = [Text.assemble("Correlation id ", plain(correlation_id, "bold"), shown)]
    for archived in found.entries:
        heading = Text.assemble("Batch ", plain(archived.entry.batch_id, "bold"))
        parts += [Text(), heading, *printed_lines(archived)]
    if found.continues_before is not None:
        parts += [Text(), Text(f"There are older entries: --before {found.continues_before}")]
    return Group(*parts)
