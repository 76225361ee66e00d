"""`bcs batches list`: finds batches by their state and their last change."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import structlog
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bcs.cli.options import AsJson
from bcs.cli.output import plain, present, print_json, table
from bcs.cli.times import Since, Until, checked_age
from bcs.config.loading import load_settings
from bcs.config.pipelines import pipelines_of
from bcs.config.settings import Settings
from bcs.domain.finding import Condition, Criteria
from bcs.domain.law import CompletionLaw
from bcs.domain.times import format_timestamp, microseconds
from bcs.http.found_batches import batches_document, criteria_of, cursor_in, encode_cursor, found_document
from bcs.http.parameters import MOST_BATCHES, USUAL_BATCHES, USUAL_STALE_SECONDS, BatchesQuery, parse_query
from bcs.ops.finding import batch_finder
from bcs.ops.wording import counted
from bcs.runtime import running
from bcs.usecases.find_batches import Cursor, FoundBatch, FoundBatches


def list_batches(
    state: Annotated[
        Condition | None, typer.Option("--state", help="Only batches in this state. [default: all]", show_default=False)
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(
            "--phase",
            metavar="NAME",
            help="Only this phase counts for the state; without --state, only batches with facts about it.",
            show_default=False,
        ),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            metavar="NAME",
            help="The phases of this pipeline count for the state; without --state, only batches with facts about one.",
            show_default=False,
        ),
    ] = None,
    since: Since = None,
    until: Until = None,
    stale_after: Annotated[
        str,
        typer.Option(
            "--stale-after",
            metavar="AGE",
            callback=checked_age,
            help="An incomplete batch is stale after so long without a change.",
        ),
    ] = f"{USUAL_STALE_SECONDS // 3600}h",
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=MOST_BATCHES, help="How many batches at most.")
    ] = USUAL_BATCHES,
    cursor: Annotated[
        str | None,
        typer.Option("--cursor", metavar="TEXT", help="Go on where the page before ended.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find batches by their state and their last change, the last changed first.

    Reads the archive in PostgreSQL where BCS_DATABASE_URL is set, else the index in Redis. The service need not run,
    and nothing is written.

    A batch is `blocked` if essays that failed keep a phase from being complete, and `stale` if it is incomplete and has
    not changed for an hour. All phases count that it has facts about, or those of `--phase` or `--pipeline`. `--since`
    and `--until` are about the last change.
    """
    settings = load_settings()
    definitions = pipelines_of(settings)
    law = definitions.law(require_registration=settings.require_registration)
    given = {
        "limit": str(limit),
        "state": state,
        "phase": phase,
        "pipeline": pipeline,
        "since": since,
        "until": until,
        "stale_seconds": stale_after,
        "cursor": cursor,
    }
    query = parse_query(BatchesQuery, [(name, value) for name, value in given.items() if value is not None])
    criteria = criteria_of(query, definitions, microseconds(datetime.now(UTC)))
    page, source = _read(settings, law, criteria, limit, cursor_in(query))
    following = None if page.following is None else encode_cursor(page.following)
    if as_json:
        documents = [found_document(found, law) for found in page.batches]
        print_json(batches_document(documents, page, source, following))
    else:
        present(_page(page, following))


def _read(
    settings: Settings, law: CompletionLaw, criteria: Criteria, limit: int, cursor: Cursor | None
) -> tuple[FoundBatches, str]:
    """So many batches, from as many pages as that takes, and the name of the store."""

    async def read() -> tuple[FoundBatches, str]:
        batches: list[FoundBatch] = []
        unreadable: list[str] = []
        scanned, following = 0, cursor
        async with batch_finder(settings, law) as finder:
            while True:
                page = await finder.find(criteria, limit=limit - len(batches) - len(unreadable), cursor=following)
                batches += page.batches
                unreadable += page.unreadable
                scanned, following = scanned + page.scanned, page.following
                if following is None or len(batches) + len(unreadable) >= limit:
                    return FoundBatches(batches, unreadable, scanned, following), finder.source

    # Log lines would only repeat the error.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return running.run(read)


def _page(page: FoundBatches, following: str | None) -> RenderableType:
    parts: list[RenderableType] = []
    if page.batches:
        rows = table("batch", "changed", "essays", "state", "phases")
        for column in rows.columns[1:4]:
            column.no_wrap = True
        for found in page.batches:
            at = format_timestamp(found.changed_at_us // 1_000_000 * 1_000_000).replace(".000000", "")
            rows.add_row(plain(found.batch_id), at, _essays(found), _states(found), plain(_phases(found)))
        parts += [rows, Text()]
    parts.append(Text(f"{counted(len(page.batches), 'batch', 'batches')} found, {page.scanned} looked at"))
    for batch_id in page.unreadable:
        parts.append(Text.assemble("The stored facts of ", plain(batch_id, "bold"), " can't be read"))
    if following is not None:
        parts.append(Text(f"There may be more: --cursor {following}"))
    return Group(*parts)


def _essays(found: FoundBatch) -> str:
    summary = found.summary
    return f"{summary.known} of {summary.expected}" if summary.registered else str(summary.known)


def _states(found: FoundBatch) -> str:
    # Each of these is incomplete, too.
    implied = {Condition.INCOMPLETE} if {Condition.BLOCKED, Condition.STALE}.intersection(found.conditions) else set()
    return ", ".join(condition for condition in found.conditions if condition not in implied)


def _phases(found: FoundBatch) -> str:
    return "; ".join(_phase(found, phase) for phase in found.phases if phase in found.summary.progress)


def _phase(found: FoundBatch, phase: str) -> str:
    progress = found.summary.progress[phase]
    if progress.complete:
        return f"{phase} complete"
    failed = progress.failed + progress.failed_before
    return f"{phase} {progress.completed} of {found.summary.known}" + (f", {failed} failed" if failed else "")
