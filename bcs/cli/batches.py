"""`bcs batches`: finding batches, the state of a batch, the essays that block its phases, and its history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from bcs.cli.archive_reading import read_history, search_history
from bcs.cli.batch_erasing import erase
from bcs.cli.batch_history import history_page
from bcs.cli.batch_invalidating import invalidate
from bcs.cli.batches_list import list_batches
from bcs.cli.history_filters import Before, EntryLimit, EntryType, below, history_filter
from bcs.cli.known import read_known
from bcs.cli.options import PANEL, AsJson, BatchId, command_group
from bcs.cli.output import plain, present, print_json, table
from bcs.cli.times import Since, Until
from bcs.config.loading import load_settings
from bcs.config.pipelines import pipelines_of
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.domain.progress import BlockingEssay, Evaluation, PhaseExplanation, Standing
from bcs.domain.state import BatchState
from bcs.domain.times import format_timestamp
from bcs.errors import BcsError
from bcs.http.documents import (
    OUTCOMES,
    BatchPage,
    Extent,
    history_document,
    phase_document,
    phases_to_show,
    state_document,
)
from bcs.http.found_history import matches_document
from bcs.http.parameters import USUAL_ENTRIES
from bcs.ops.wording import counted, printable
from bcs.storage.postgres.history_reader import HistoryPage

_LISTED = 20

app = command_group("batches")
app.command("erase")(erase)
app.command("invalidate")(invalidate)
app.command("list")(list_batches)


class UnknownBatch(BcsError):
    """Neither Redis nor the archive has the batch."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"the batch {printable(batch_id)} is unknown: no event named it, or it has expired")
        self.batch_id = batch_id


@app.callback(rich_help_panel=PANEL)
def batches() -> None:
    """Find batches, show their state and their history, take completions back, and erase batches."""


@app.command()
def show(
    batch_id: BatchId,
    phase: Annotated[
        str | None, typer.Option("--phase", metavar="NAME", help="Only this phase. [default: all]", show_default=False)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help="With --json, how many essays a list has at most. [default: all]",
            show_default=False,
        ),
    ] = None,
    after: Annotated[
        str,
        typer.Option(
            "--after",
            metavar="ESSAY",
            help="With --json, only essays whose ids come after this id. [default: begin with the first]",
            show_default=False,
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show which phases of a batch are complete, and which essays block the other phases.

    Reads Redis and, where BCS_DATABASE_URL is set, the archive in PostgreSQL. The service need not run, and nothing is
    written. A phase lists 20 essays at most, and a phase without any facts lists none. `--phase` lists the essays of
    that phase in any case. `--json` lists all essays, or as many as `--limit` allows.
    """
    settings = load_settings()
    definitions = pipelines_of(settings)
    law = definitions.law(require_registration=settings.require_registration)
    known = read_known(settings, batch_id, law)
    state = known.state
    if state.empty:
        raise UnknownBatch(batch_id)
    phases = phases_to_show(state, definitions.phases)
    if phase is not None:
        if phase not in {*phases, *PLATFORM_PHASES}:
            raise typer.BadParameter(
                f"there is no such phase; the phases are: {', '.join(phases)}", param_hint="--phase"
            )
        phases = [phase]
    evaluation = Evaluation(state, law)
    reports = [evaluation.explain(name) for name in phases]
    if as_json:
        extent = Extent(after, limit)
        explained = [phase_document(of, extent) for of in reports]
        page = BatchPage(
            batch_id=batch_id,
            state=state,
            version=known.version,
            source=known.source,
            essays=evaluation.essays,
            extent=extent,
            next_after=str,
        )
        document = state_document(page)
        print_json({**document, "phases": explained})
    else:
        present(_page(batch_id, state, known.version, reports, in_full=phase is not None))


@app.command()
def history(
    batch_id: BatchId,
    limit: EntryLimit = USUAL_ENTRIES,
    before: Before = None,
    since: Since = None,
    until: Until = None,
    correlation_id: Annotated[
        str | None,
        typer.Option(
            "--correlation-id", metavar="ID", help="Only entries with this correlation id.", show_default=False
        ),
    ] = None,
    entry_type: EntryType = None,
    as_json: AsJson = False,
) -> None:
    """Show the facts that arrived about a batch, and the answers about it, newest first.

    Reads the archive in PostgreSQL (BCS_DATABASE_URL); the service need not run. Where an event is about several
    essays, their number is shown. With --json each essay is listed, with the time of each fact.
    """
    wanted = history_filter(since=since, until=until, correlation_id=correlation_id, entry_type=entry_type)
    if not wanted.empty:
        found = search_history(load_settings(), batch_id, wanted, before=below(before), limit=limit)
        if found is None:
            raise UnknownBatch(batch_id)
        if as_json:
            print_json(matches_document(batch_id, found, found.continues_before))
        else:
            present(history_page(batch_id, HistoryPage(tuple(found.entries), found.continues_before)))
        return
    page = read_history(load_settings(), batch_id, before=below(before), limit=limit)
    if page is None:
        raise UnknownBatch(batch_id)
    if as_json:
        print_json(history_document(batch_id, page.entries, page.continues_before))
    else:
        present(history_page(batch_id, page))


def _page(
    batch_id: str, state: BatchState, version: int | None, reports: Sequence[PhaseExplanation], *, in_full: bool
) -> RenderableType:
    expected = f"{state.expected.count} expected" if state.expected else "not registered"
    known = counted(len(state.first_seen_us), "essay")
    origin = "from the archive (PostgreSQL)" if version is None else f"version {version}"
    parts: list[RenderableType] = [
        Text.assemble("Batch ", plain(batch_id, "bold"), f": {known} known, {expected}, {origin}"),
        Text(),
        _counts(reports),
        Text(),
        _times(reports),
    ]
    # The essays of a phase that has not begun are not listed, because they would hide the other phases.
    unmarked = [of.phase for of in reports if of.newest is None and of.outcome is None and not in_full]
    for of in reports:
        if not of.progress.complete and of.phase not in unmarked:
            parts += [Text(), *_explanation(of, registered=state.expected is not None)]
    if unmarked:
        parts += [Text(), Text.assemble("No facts yet about: ", plain(", ".join(unmarked), "bold"))]
    return Group(*parts)


def _counts(reports: Sequence[PhaseExplanation]) -> RenderableType:
    numbers = ("completed", "failed", "left out", "outstanding")
    counts = table("phase", "progress", *numbers, right=numbers)
    for of in reports:
        progress = of.progress
        word = Text("complete", "green") if progress.complete else Text("not complete", "yellow")
        figures = (progress.completed, progress.failed, progress.left_out, of.outstanding)
        counts.add_row(plain(of.phase), word, *map(str, figures))
    return counts


def _times(reports: Sequence[PhaseExplanation]) -> RenderableType:
    times = table("phase", "known", "when")
    for of in reports:
        known = [("newest mark", of.newest)] if of.newest else []
        known += [(f"reported {OUTCOMES[of.report.outcome]}", of.report)] if of.report else []
        rows = [(label, mark.at_us) for label, mark in known]
        rows += [(f"outcome {of.outcome.status}", of.outcome.at_us)] if of.outcome else []
        for label, at_us in rows:
            times.add_row(plain(of.phase), plain(label), format_timestamp(at_us))
    return times


def _explanation(of: PhaseExplanation, *, registered: bool) -> list[RenderableType]:
    held_back_by = of.held_back_by
    lines: list[RenderableType] = []
    if held_back_by:
        lines.append(Text.assemble(plain(of.phase, "bold"), f" is blocked by {counted(len(held_back_by), 'essay')}:"))
        essays = table("essay", "why")
        for essay in held_back_by[:_LISTED]:
            essays.add_row(plain(essay.essay_id), _why(essay, of))
        lines.append(Padding(essays, (0, 0, 0, 2), expand=False))
        if len(held_back_by) > _LISTED:
            lines.append(Text(f"  and {len(held_back_by) - _LISTED} more, which --json lists"))
    if of.missing:
        missing = counted(of.missing, "expected essay")
        lines.append(Text.assemble(plain(of.phase, "bold"), f" lacks {missing} that no event has named"))
    if not lines and of.progress.completed and not registered:
        lines.append(Text.assemble(plain(of.phase, "bold"), " is not complete, because the batch is not registered"))
    if not lines:
        lines.append(Text.assemble(plain(of.phase, "bold"), ": no essay is known, and no report covers the batch"))
    return lines


def _why(essay: BlockingEssay, of: PhaseExplanation) -> str:
    if essay.why is Standing.FAILED and essay.mark:
        failed = "failed with the whole batch" if essay.mark is of.report else "failed"
        return f"{failed} at {format_timestamp(essay.mark.at_us)}"
    if essay.why is Standing.FAILED_BEFORE:
        return "failed in a phase that this one requires"
    if essay.why is Standing.LEFT_OUT and of.outcome:
        return f"not in the outcome of {format_timestamp(of.outcome.at_us)}"
    if essay.why is Standing.JOINED_AFTER_REPORT:
        return f"joined after the phase report, at {format_timestamp(essay.first_seen_us)}"
    return "no mark"
