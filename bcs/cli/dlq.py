"""`bcs dlq`: dead letters, listed, shown, put back and deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bcs.cli.dlq_letter import NoLetter, say_junk, say_letter
from bcs.cli.dlq_listing import nothing_selected, say_plan, say_survey
from bcs.cli.dlq_progress import say_progress
from bcs.cli.dlq_selecting import (
    Batches,
    Reasons,
    References,
    Services,
    Since,
    Topics,
    Until,
    a_moment,
    one_reference,
    selection_of,
)
from bcs.cli.options import PANEL, URL_OF_SETTINGS, AsJson, ServiceUrl, command_group
from bcs.cli.output import print_json
from bcs.errors import UnknownTopic, UnreadableLetter
from bcs.ops.dlq.selection import LetterRange, Selection
from bcs.ops.wording import counted, printable
from bcs.runtime import running
from bcs.wire import topics
from bcs.wire.dead_letters.decode import DeadLetter, Reference, marked_offset, purged_offset
from bcs.wire.published import SERVICE

if TYPE_CHECKING:
    from bcs.config.settings import Settings
    from bcs.ops.dlq.reading import Survey
    from bcs.ops.dlq.replaying import Replayed

app = command_group("dlq")


@app.callback(rich_help_panel=PANEL)
def dlq() -> None:
    """Dead letters: what could not be processed, and the way back."""


_FAILED = 1


@app.command("list")
def list_letters(
    topic: Topics = None,
    reason: Reasons = None,
    batch: Batches = None,
    since: Since = None,
    until: Until = None,
    service: Services = None,
    each: Annotated[bool, typer.Option("--each", help="Every letter, not only how many.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count letters by topic, reason and service: those that wait, and those that were put back; oldest and newest."""
    settings = _settings()
    selection = selection_of(None, topic, reason, batch, since, until, service)
    survey = running.run(_survey, settings, selection)
    say_survey(survey, each=each, as_json=as_json)
    _exit_if_stalled(survey)


@app.command()
def show(
    letter: Annotated[
        str,
        typer.Argument(parser=one_reference, metavar="LETTER", help="topic/partition/offset, from `list --each`."),
    ],
    as_json: AsJson = False,
) -> None:
    """Show one letter: its envelope, why it is dead, its headers, and its bytes where they are no JSON."""
    settings = _settings()
    place = LetterRange.parse(letter)
    found = running.run(_look_up, settings, Reference(place.topic, place.partition, place.first))
    if found is None:
        why = "it was deleted, is still to come, or is a transaction's marker"
        typer.echo(f"bcs: there is no letter at {letter}: {why}", err=True)
        raise typer.Exit(_FAILED)
    if isinstance(found, tuple):
        say_letter(found[0], replayed=found[1], as_json=as_json)
        return
    say_junk(found, as_json=as_json)
    raise typer.Exit(_FAILED)


@app.command()
def replay(
    letters: References = None,
    topic: Topics = None,
    reason: Reasons = None,
    batch: Batches = None,
    since: Since = None,
    until: Until = None,
    service: Services = None,
    everything: Annotated[bool, typer.Option("--all", help="All letters of BCS that were not put back yet.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also those that were put back before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go where.")] = False,
    rate: Annotated[float | None, typer.Option(min=0.001, max=1e6, help="At most so many letters a second.")] = None,
    url: ServiceUrl = URL_OF_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Put letters back: messages where they came from, resolutions to the service. Exits 1 if one could not be.

    A letter is marked as replayed once its original is acknowledged. What was stopped half way is simply run again.
    Letters that another service wrote are put back only where they are named, or with --service.
    """
    selection = selection_of(letters, topic, reason, batch, since, until, service)
    if selection.empty and not everything:
        raise typer.BadParameter("say which letters, or --all for every one that was not put back yet")
    settings = _settings()
    survey = running.run(_survey, settings, selection)
    chosen = {where for where, letter in survey.letters.items() if letters or service or letter.is_ours}
    wanted = sorted(reference for reference in chosen if again or reference not in survey.replayed)
    if not as_json:
        _say_left_out(survey, chosen, wanted)
    if dry_run:
        say_plan([survey.letters[reference] for reference in wanted], as_json=as_json)
        return
    with say_progress(len(wanted), as_json=as_json) as outcome:
        running.run(_replay, settings, wanted, url, rate, outcome.tell)
    if outcome.failed:
        raise typer.Exit(_FAILED)
    _exit_if_stalled(survey)


@app.command("purge")
def purge_letters(
    topic: Topics = None,
    before: Annotated[
        datetime | None, typer.Option(parser=a_moment, metavar="TIME", help="What is newer stays.")
    ] = None,
    service: Services = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete letters for good, replayed or not. Asks before it does.

    Letters that another service wrote stay, unless --service names that service, and so do those that lie behind them.
    """
    from bcs.ops.dlq.purging import last_to_purge, purge, purged

    settings = _settings()
    survey = running.run(_survey, settings, selection_of(None, topic, None, None, None, None, None))
    services = frozenset(service or (SERVICE,))
    last = last_to_purge(survey, before, services)
    gone = purged([*survey.letters, *survey.unreadable], last)
    waiting = [reference for reference in gone if reference not in survey.replayed]
    if gone and not yes:
        many = counted(len(gone), "letter")
        typer.echo(f"{many} would be gone for good, {len(waiting)} of them never put back.", err=as_json)
        typer.confirm("Delete them?", abort=True, err=as_json)
    deleted = running.run(purge, settings, last) if gone else True
    stay = sum(letter.service not in services for letter in survey.letters.values())
    if as_json:
        print_json({"deleted": len(gone), "never_replayed": len(waiting), "of_other_services": stay})
    else:
        typer.echo(f"{counted(len(gone), 'letter')} deleted." if gone else "There is nothing to delete.")
        if not deleted:
            typer.echo("This broker can't delete records: the letters are marked as purged, and shown no more.")
        if stay:
            many = f"{counted(stay, 'letter')} of other services {'stays' if stay == 1 else 'stay'}"
            typer.echo(f"{many}, with what lies behind them: see `bcs dlq list`, and --service.")
    _exit_if_stalled(survey)


def _say_left_out(survey: Survey, chosen: set[Reference], wanted: list[Reference]) -> None:
    """Say why fewer letters are put back than there are."""
    others = {where: letter.service for where, letter in survey.letters.items() if where not in chosen}
    if waiting := {where for where in others if where not in survey.replayed}:
        names = ", ".join(sorted({others[where] for where in waiting}))
        many = f"{counted(len(waiting), 'letter')} of other services {'is' if len(waiting) == 1 else 'are'} left out"
        typer.echo(printable(f"{many} ({names}); --service takes them."), err=True)
    if chosen and not wanted:
        typer.echo("All of these letters were put back before; --again puts them back once more.", err=True)
    if not survey.letters:
        typer.echo(nothing_selected(survey.total), err=True)


def _exit_if_stalled(survey: Survey) -> None:
    """Say what is missing because it could not be read. Exits 1 then."""
    for error in survey.stalled:
        typer.echo(f"bcs: {error}", err=True)
    if survey.stalled:
        raise typer.Exit(_FAILED)


def _settings() -> Settings:
    from bcs.config.settings import load_settings

    # What goes wrong is said once, in a line of ours.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return load_settings()


async def _survey(settings: Settings, selection: Selection) -> Survey:
    from bcs.ops.dlq.reading import dead_letter_reader

    wanted = {each.topic for each in selection.ranges} | selection.topics or frozenset(topics.DEAD_LETTERS)
    async with dead_letter_reader(settings) as reader:
        missing = wanted - {partition.topic for partition in await reader.partitions(wanted)}
        # A topic that somebody named; of all others some may not have been needed yet.
        if named := sorted(missing & selection.topics | {each.topic for each in selection.ranges} & missing):
            raise UnknownTopic(tuple(named))
        return (await reader.survey(wanted)).of(selection)


async def _look_up(settings: Settings, reference: Reference) -> tuple[DeadLetter, bool] | NoLetter | None:
    from bcs.ops.dlq.reading import dead_letter_reader, letter_of

    async with dead_letter_reader(settings) as reader:
        record = await reader.record_at(reference.topic, reference.partition, reference.offset)
        if record is None:
            return None
        marked = marked_offset(record.key, record.value)
        if marked is not None:
            return NoLetter(f"this marks the letter at offset {marked} as replayed", record.key, record.value)
        purged = purged_offset(record.key, record.value)
        if purged is not None:
            return NoLetter(f"this marks all letters up to offset {purged} as purged", record.key, record.value)
        try:
            letter = letter_of(record)
        except UnreadableLetter as error:
            return NoLetter(error.problem, record.key, record.value)
        survey = await reader.survey([reference.topic])
    return letter, reference in survey.replayed


async def _replay(
    settings: Settings, wanted: list[Reference], url: str, rate: float | None, tell: Callable[[Replayed], None]
) -> None:
    import aiohttp

    from bcs.ops.dlq.reading import dead_letter_reader
    from bcs.ops.dlq.replaying import Replayer, operators_producer

    async with (
        dead_letter_reader(settings) as letters,
        dead_letter_reader(settings) as source,
        operators_producer(settings) as producer,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=settings.http_timeout)) as session,
    ):
        replayer = Replayer(
            letters,
            source,
            producer,
            session,
            url=url,
            rate=rate,
            settings=settings,
            tell=tell,
        )
        await replayer.replay(set(wanted))
