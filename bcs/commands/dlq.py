"""`bcs dlq`: dead letters, listed, shown, put back and deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from bcs.commands.dlq_letter import say_letter
from bcs.commands.dlq_listing import say_plan, say_survey
from bcs.commands.dlq_progress import say_progress
from bcs.commands.options import DEFAULT_URL, PANEL, AsJson, ServiceUrl, command_group
from bcs.contracts import topics
from bcs.contracts.letters import DeadLetter, Reference
from bcs.dlq.selection import LetterRange, Selection, all_of_letters, moment

if TYPE_CHECKING:
    from bcs.dlq.reading import Survey
    from bcs.dlq.replaying import Replayed
    from bcs.settings import Settings

app = command_group("dlq")


@app.callback(rich_help_panel=PANEL)
def dlq() -> None:
    """Dead letters: what could not be processed, and the way back."""


_LETTERS = tuple(topics.dead_letter_topic(source) for source in (*topics.CONSUMED, topics.RESOLUTION))
_FAILED = 1


def _ranges(texts: list[str]) -> tuple[LetterRange, ...]:
    return tuple(LetterRange.parse(text) for text in texts)


def _moment(text: str) -> datetime:
    try:
        return moment(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _reference(text: str) -> str:
    try:
        LetterRange.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


References = Annotated[
    list[str] | None,
    typer.Argument(
        parser=_reference, metavar="[LETTER]...", help="topic/partition/offset or topic/partition/first-last."
    ),
]
Topics = Annotated[list[str] | None, typer.Option("--topic", help="A source's or a dead-letter topic; repeatable.")]
Reasons = Annotated[list[str] | None, typer.Option("--reason", help="As `list` shows it; repeatable.")]
Batches = Annotated[list[str] | None, typer.Option("--batch", help="A batch's id; repeatable.")]
Since = Annotated[
    datetime | None, typer.Option(parser=_moment, metavar="TIME", help="Written then or later: 2026-05-03T08:00:00Z.")
]
Until = Annotated[datetime | None, typer.Option(parser=_moment, metavar="TIME", help="Written before.")]


@app.command("list")
def list_letters(
    topic: Topics = None,
    reason: Reasons = None,
    batch: Batches = None,
    since: Since = None,
    until: Until = None,
    each: Annotated[bool, typer.Option("--each", help="Every letter, not only how many.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count letters by topic and reason: those that wait, and those that were put back; the oldest, the newest."""
    settings = _settings()
    selection = _selection(None, topic, reason, batch, since, until)
    survey = anyio.run(_survey, settings, selection)
    say_survey(survey, each=each, as_json=as_json)


@app.command()
def show(
    letter: Annotated[
        str,
        typer.Argument(parser=_reference, metavar="LETTER", help="topic/partition/offset, from `list --each`."),
    ],
    as_json: AsJson = False,
) -> None:
    """Show one letter: its envelope, why it is dead, its headers, and its bytes where they are no JSON."""
    settings = _settings()
    place = LetterRange.parse(letter)
    found, replayed = anyio.run(_look_up, settings, Reference(place.topic, place.partition, place.first))
    if found is None:
        typer.echo(f"bcs: there is no letter at {letter}", err=True)
        raise typer.Exit(_FAILED)
    say_letter(found, replayed=replayed, as_json=as_json)


@app.command()
def replay(
    letters: References = None,
    topic: Topics = None,
    reason: Reasons = None,
    batch: Batches = None,
    since: Since = None,
    until: Until = None,
    everything: Annotated[bool, typer.Option("--all", help="All letters that were not put back yet.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also those that were put back before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go where.")] = False,
    rate: Annotated[float | None, typer.Option(min=0.001, help="At most so many letters a second.")] = None,
    url: ServiceUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Put letters back: messages where they came from, resolutions to the service. Exits 1 if one could not be.

    A letter is marked as replayed once its original is acknowledged. What was stopped half way is simply run again.
    """
    selection = _selection(letters, topic, reason, batch, since, until)
    if selection.empty and not everything:
        raise typer.BadParameter("say which letters, or --all for every one that was not put back yet")
    settings = _settings()
    survey = anyio.run(_survey, settings, selection)
    wanted = sorted(reference for reference in survey.letters if again or reference not in survey.replayed)
    if dry_run:
        say_plan([survey.letters[reference] for reference in wanted], as_json=as_json)
        return
    with say_progress(len(wanted), as_json=as_json) as outcome:
        anyio.run(_replay, settings, wanted, url, rate, outcome.tell)
    if outcome.failed:
        raise typer.Exit(_FAILED)


@app.command("purge")
def purge_letters(
    topic: Topics = None,
    before: Annotated[
        datetime | None, typer.Option(parser=_moment, metavar="TIME", help="What is newer stays.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete letters for good, replayed or not. Asks before it does."""
    from bcs.dlq.purging import last_to_purge, purge, purged

    settings = _settings()
    survey = anyio.run(_survey, settings, _selection(None, topic, None, None, None, None))
    last = last_to_purge(survey, before)
    gone = purged([*survey.letters, *survey.unreadable], last)
    waiting = [reference for reference in gone if reference not in survey.replayed]
    if not gone:
        typer.echo("There is nothing to delete.")
        return
    typer.echo(f"{len(gone)} letters would be gone for good, {len(waiting)} of them were never put back.")
    if not yes:
        typer.confirm("Delete them?", abort=True)
    anyio.run(purge, settings, last)
    typer.echo(f"{len(gone)} letters deleted.")


def _selection(
    letters: list[str] | None,
    topic: list[str] | None,
    reason: list[str] | None,
    batch: list[str] | None,
    since: datetime | None,
    until: datetime | None,
) -> Selection:
    return Selection(
        _ranges(letters or []),
        all_of_letters(topic or ()),
        frozenset(reason or ()),
        frozenset(batch or ()),
        since,
        until,
    )


def _settings() -> Settings:
    from bcs.settings import load_settings

    # What goes wrong is said once, in a line of ours.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return load_settings()


async def _survey(settings: Settings, selection: Selection) -> Survey:
    from bcs.dlq.reading import dead_letter_reader

    wanted = {each.topic for each in selection.ranges} | selection.topics or frozenset(_LETTERS)
    async with dead_letter_reader(settings) as reader:
        return (await reader.survey(wanted)).of(selection)


async def _look_up(settings: Settings, reference: Reference) -> tuple[DeadLetter | None, bool]:
    from bcs.dlq.reading import dead_letter_reader, letter_of

    async with dead_letter_reader(settings) as reader:
        survey = await reader.survey([reference.topic])
        record = await reader.record_at(reference.topic, reference.partition, reference.offset)
    return (None if record is None else letter_of(record)), reference in survey.replayed


async def _replay(
    settings: Settings, wanted: list[Reference], url: str, rate: float | None, tell: Callable[[Replayed], None]
) -> None:
    import aiohttp

    from bcs.dlq.reading import dead_letter_reader
    from bcs.dlq.replaying import Replayer, operators_producer

    async with (
        dead_letter_reader(settings) as letters,
        dead_letter_reader(settings) as source,
        operators_producer(settings) as producer,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=settings.http_timeout)) as session,
    ):
        replayer = Replayer(letters, source, producer, session, url=url, rate=rate, tell=tell)
        await replayer.replay(set(wanted))
