"""`bcs dlq`: lists, shows, replays and deletes dead letters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from bcs.cli.dlq_listing import nothing_selected, print_index, print_plan
from bcs.cli.dlq_progress import print_progress
from bcs.cli.dlq_selecting import (
    Batches,
    DeadLetters,
    Reasons,
    Services,
    Since,
    Topics,
    Until,
    a_timestamp,
    one_position,
    selection_of,
)
from bcs.cli.dlq_show import NotADeadLetter, print_dead_letter, print_junk
from bcs.cli.options import PANEL, URL_OF_SETTINGS, AsJson, ServiceUrl, command_group
from bcs.cli.output import print_json
from bcs.errors import UnknownTopic, UnreadableDeadLetter
from bcs.ops.dlq.selection import DeadLetterRange, Selection
from bcs.ops.wording import counted, printable
from bcs.runtime import running
from bcs.wire import topics
from bcs.wire.dead_letters.decode import DeadLetter, DeadLetterPosition, purged_offset, replayed_offset
from bcs.wire.published import SERVICE

if TYPE_CHECKING:
    from bcs.config.settings import Settings
    from bcs.ops.dlq.reading import DeadLetterIndex
    from bcs.ops.dlq.replaying import Replayed

app = command_group("dlq")


@app.callback(rich_help_panel=PANEL)
def dlq() -> None:
    """Dead letters: messages that could not be processed. List, show, replay and delete them."""


_FAILED = 1


@app.command("list")
def list_dead_letters(
    topic: Topics = None,
    reason: Reasons = None,
    batch: Batches = None,
    since: Since = None,
    until: Until = None,
    service: Services = None,
    each: Annotated[bool, typer.Option("--each", help="List every dead letter, not only the counts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count dead letters by topic, reason, producer and service: waiting, replayed, the oldest and the newest."""
    settings = _settings()
    selection = selection_of(None, topic, reason, batch, since, until, service)
    index = running.run(_read_index, settings, selection)
    print_index(index, each=each, as_json=as_json)
    _exit_if_stalled(index)


@app.command()
def show(
    dead_letter: Annotated[
        str,
        typer.Argument(parser=one_position, metavar="POSITION", help="topic/partition/offset, from `list --each`."),
    ],
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: its envelope, its reason, its headers, and its bytes where they are not JSON."""
    settings = _settings()
    place = DeadLetterRange.parse(dead_letter)
    found = running.run(_look_up, settings, DeadLetterPosition(place.topic, place.partition, place.first))
    if found is None:
        why = "it was deleted, is not written yet, or is a transaction's marker"
        typer.echo(f"bcs: there is no dead letter at {dead_letter}: {why}", err=True)
        raise typer.Exit(_FAILED)
    if isinstance(found, tuple):
        print_dead_letter(found[0], replayed=found[1], as_json=as_json)
        return
    print_junk(found, as_json=as_json)
    raise typer.Exit(_FAILED)


@app.command()
def replay(
    dead_letters: DeadLetters = None,
    topic: Topics = None,
    reason: Reasons = None,
    batch: Batches = None,
    since: Since = None,
    until: Until = None,
    service: Services = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All dead letters of BCS that were not replayed yet.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Include dead letters that were replayed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print which dead letter would go where.")] = False,
    rate: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, help="How many dead letters a second at most.")
    ] = None,
    url: ServiceUrl = URL_OF_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Replay dead letters: messages to their source topics, resolutions to the service. Exits 1 if one fails.

    A dead letter is marked as replayed once its original is acknowledged. If the command was stopped, run it again.
    Dead letters of other services are replayed only if they are named, or with --service.
    """
    selection = selection_of(dead_letters, topic, reason, batch, since, until, service)
    if selection.empty and not everything:
        raise typer.BadParameter("name dead letters, or use --all for all that were not replayed yet")
    settings = _settings()
    index = running.run(_read_index, settings, selection)
    chosen = {
        where for where, dead_letter in index.dead_letters.items() if dead_letters or service or dead_letter.is_ours
    }
    wanted = sorted(position for position in chosen if again or position not in index.replayed)
    if not as_json:
        _print_left_out(index, chosen, wanted)
    if dry_run:
        print_plan([index.dead_letters[position] for position in wanted], as_json=as_json)
        return
    with print_progress(len(wanted), as_json=as_json) as outcome:
        running.run(_replay, settings, wanted, url, rate, outcome.notify)
    if outcome.failed:
        raise typer.Exit(_FAILED)
    _exit_if_stalled(index)


@app.command("purge")
def purge_dead_letters(
    topic: Topics = None,
    before: Annotated[
        datetime | None, typer.Option(parser=a_timestamp, metavar="TIME", help="Newer dead letters stay.")
    ] = None,
    service: Services = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters for good, replayed or not, after a confirmation.

    Dead letters of other services stay, unless --service names that service, and so do all dead letters after them.
    """
    from bcs.ops.dlq.purging import last_to_purge, purge, purged

    settings = _settings()
    index = running.run(_read_index, settings, selection_of(None, topic, None, None, None, None, None))
    services = frozenset(service or (SERVICE,))
    last = last_to_purge(index, before, services)
    gone = purged([*index.dead_letters, *index.unreadable], last)
    waiting = [position for position in gone if position not in index.replayed]
    if gone and not yes:
        many = counted(len(gone), "dead letter")
        typer.echo(f"{many} would be deleted for good, {len(waiting)} of them never replayed.", err=as_json)
        typer.confirm("Delete them?", abort=True, err=as_json)
    deleted = running.run(purge, settings, last) if gone else True
    stay = sum(dead_letter.service not in services for dead_letter in index.dead_letters.values())
    if as_json:
        print_json({"deleted": len(gone), "never_replayed": len(waiting), "of_other_services": stay})
    else:
        typer.echo(f"{counted(len(gone), 'dead letter')} deleted." if gone else "There is nothing to delete.")
        if not deleted:
            typer.echo(
                "This broker can't delete records: the dead letters are marked as purged, and not shown any more."
            )
        if stay:
            many = f"{counted(stay, 'dead letter')} of other services {'stays' if stay == 1 else 'stay'}"
            typer.echo(f"{many}, with all dead letters after them: see `bcs dlq list`, and --service.")
    _exit_if_stalled(index)


def _print_left_out(index: DeadLetterIndex, chosen: set[DeadLetterPosition], wanted: list[DeadLetterPosition]) -> None:
    """Print the reasons why some dead letters are not replayed."""
    others = {where: dead_letter.service for where, dead_letter in index.dead_letters.items() if where not in chosen}
    if waiting := {where for where in others if where not in index.replayed}:
        names = ", ".join(sorted({others[where] for where in waiting}))
        many = (
            f"{counted(len(waiting), 'dead letter')} of other services {'is' if len(waiting) == 1 else 'are'} left out"
        )
        typer.echo(printable(f"{many} ({names}); --service includes them."), err=True)
    if chosen and not wanted:
        typer.echo("All of these dead letters were replayed before; --again replays them once more.", err=True)
    if not index.dead_letters:
        typer.echo(nothing_selected(index.total), err=True)


def _exit_if_stalled(index: DeadLetterIndex) -> None:
    """Print the partitions that could not be read, and exit with 1 if there are any."""
    for error in index.stalled:
        typer.echo(f"bcs: {error}", err=True)
    if index.stalled:
        raise typer.Exit(_FAILED)


def _settings() -> Settings:
    from bcs.config.loading import load_settings

    # BCS prints each error once, in its own line.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return load_settings()


async def _read_index(settings: Settings, selection: Selection) -> DeadLetterIndex:
    from bcs.ops.dlq.reading import dead_letter_reader

    wanted = {each.topic for each in selection.ranges} | selection.topics or frozenset(topics.DEAD_LETTERS)
    async with dead_letter_reader(settings) as reader:
        missing = wanted - {partition.topic for partition in await reader.partitions(wanted)}
        # Only a missing topic that the operator named is an error; others may not have been needed yet.
        if named := sorted(missing & selection.topics | {each.topic for each in selection.ranges} & missing):
            raise UnknownTopic(tuple(named))
        return (await reader.index(wanted)).of(selection)


async def _look_up(settings: Settings, position: DeadLetterPosition) -> tuple[DeadLetter, bool] | NotADeadLetter | None:
    from bcs.ops.dlq.reading import dead_letter_of, dead_letter_reader

    async with dead_letter_reader(settings) as reader:
        record = await reader.record_at(position.topic, position.partition, position.offset)
        if record is None:
            return None
        marked = replayed_offset(record.key, record.value)
        if marked is not None:
            return NotADeadLetter(
                f"this marks the dead letter at offset {marked} as replayed", record.key, record.value
            )
        purged = purged_offset(record.key, record.value)
        if purged is not None:
            return NotADeadLetter(
                f"this marks all dead letters up to offset {purged} as purged", record.key, record.value
            )
        try:
            dead_letter = dead_letter_of(record)
        except UnreadableDeadLetter as error:
            return NotADeadLetter(error.problem, record.key, record.value)
        index = await reader.index([position.topic])
    return dead_letter, position in index.replayed


async def _replay(
    settings: Settings,
    wanted: list[DeadLetterPosition],
    url: str,
    rate: float | None,
    notify: Callable[[Replayed], None],
) -> None:
    import aiohttp

    from bcs.observability.tracer_factory import tracing
    from bcs.ops.credentials import authorization, tls_context
    from bcs.ops.dlq.originals import resolve_again
    from bcs.ops.dlq.reading import dead_letter_reader
    from bcs.ops.dlq.replaying import Replayer, operators_producer
    from bcs.ops.operators import operator

    async with (
        tracing(settings) as tracer,
        dead_letter_reader(settings) as dead_letters,
        dead_letter_reader(settings) as source,
        operators_producer(settings) as producer,
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=settings.http_timeout),
            headers=authorization(),
            connector=aiohttp.TCPConnector(ssl=tls_context()) if url.startswith("https:") else None,
        ) as session,
    ):
        replayer = Replayer(
            dead_letters,
            source,
            producer,
            resolve=partial(resolve_again, session, url),
            rate=rate,
            settings=settings,
            notify=notify,
            by=operator(),
            tracer=tracer,
        )
        await replayer.replay(set(wanted))
