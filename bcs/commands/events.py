"""`bcs events`: samples of what BCS reads, a producer for them, and a view of what BCS publishes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcs import running
from bcs.commands.event_files import EventMessage, UnusableEvent, messages_in
from bcs.commands.options import PANEL, AsJson, command_group
from bcs.commands.output import counted, plain, present, print_json
from bcs.commands.published import as_document, as_text
from bcs.contracts import topics
from bcs.contracts.decoding import EventDecoder
from bcs.contracts.producing import EventType, Sample, event_type_of, sample_events
from bcs.domain.errors import PartitionStalled, UndecodableMessage
from bcs.domain.pipelines import PLATFORM_PHASES

if TYPE_CHECKING:
    from bcs.commands.event_stream import TailOptions
    from bcs.settings import Settings

app = command_group("events")

_FAILED = 1
_SAMPLE_ESSAYS = ("essay_1", "essay_2", "essay_3")


def _an_event_type(text: str) -> EventType:
    known = event_type_of(text)
    if known is None:
        names = ", ".join(event_type.value for event_type in EventType)
        raise typer.BadParameter(f"BCS reads {names}, and their topics")
    return known


@app.callback(rich_help_panel=PANEL)
def events() -> None:
    """Events: make a sample, send events as the platform does, and watch what BCS publishes."""


@app.command()
def sample(
    event_type: Annotated[
        EventType,
        typer.Argument(metavar="TYPE", parser=_an_event_type, help=", ".join(EventType), show_default=False),
    ],
    batch: Annotated[str, typer.Option("--batch", help="The batch's id.")] = "batch_1",
    essay: Annotated[
        list[str] | None,
        typer.Option("--essay", help="An essay that is all right; repeatable. [default: essay_1 to essay_3]"),
    ] = None,
    failed: Annotated[list[str] | None, typer.Option("--failed", help="An essay that failed; repeatable.")] = None,
    phase: Annotated[str, typer.Option("--phase", help="The phase, for ELSBatchPhaseOutcomeV1.")] = "spellcheck",
) -> None:
    """Print a valid event, with fresh ids and the present time; one for each essay where the type is about one.

    `bcs events sample BatchEssaysRegistered --batch b1 | bcs events send -` registers a batch.
    """
    completed = (essay or []) if failed else essay or _SAMPLE_ESSAYS
    about = Sample(batch_id=batch, completed=completed, failed=failed or (), phase=phase)
    for event in sample_events(event_type, about, now=datetime.now(UTC)):
        print_json(event)


@app.command()
def send(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(metavar="FILE|-", help="One JSON document or several; - is the input.", show_default=False),
    ],
    topic: Annotated[
        EventType | None,
        typer.Option(
            "--topic",
            parser=_an_event_type,
            metavar="TOPIC",
            help="A topic that BCS reads, or the event's type. [default: what each event_type says]",
        ),
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="The Kafka key. [default: as the platform's]")] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Also what is no valid event: the service makes a dead letter of it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send events to Kafka as the platform's producers do. Sends all or, if one is not valid, none and exits with 1."""
    from bcs.commands.event_stream import produce

    settings = _settings()
    check = None if unchecked else _validity(settings)
    messages = messages_in(
        file.read(), event_type=topic, key=None if key is None else key.encode(errors="surrogateescape"), check=check
    )
    places = running.run(produce, settings, messages)
    if as_json:
        sent = [
            {"event": message.event_type.value, "key": _text(message.key), **_place(place)}
            for message, place in zip(messages, places, strict=True)
        ]
        print_json({"sent": sent})
        return
    for message, place in zip(messages, places, strict=True):
        keyed = "no key" if message.key is None else f"key {_text(message.key)}"
        present(plain(f"{message.event_type.value} sent to {place}, {keyed}"))


@app.command()
def tail(
    skipped: Annotated[bool, typer.Option("--skipped", help="Only phases that were pruned.")] = False,
    dlq: Annotated[bool, typer.Option("--dlq", help="Only dead letters.")] = False,
    last: Annotated[int, typer.Option("--last", min=0, help="So many of those that are there already.")] = 10,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on with those that come.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
) -> None:
    """Show what BCS publishes, decoded: the last ones, then those that come, until Ctrl-C."""
    from bcs.commands.event_stream import TailOptions

    wanted = [topics.PHASE_SKIPPED] if skipped or not dlq else []
    wanted += topics.DEAD_LETTERS if dlq or not skipped else []
    options = TailOptions(topics=wanted, last=last, follow=follow)
    complete = True
    # Ctrl-C is the usual end.
    with suppress(KeyboardInterrupt):
        complete = running.run(_tail, _settings(), options, as_json)
    if not complete:
        raise typer.Exit(_FAILED)


async def _tail(settings: Settings, options: TailOptions, as_json: bool) -> bool:
    """Print messages to the end.

    :returns: whether all of them could be read.
    """
    from bcs.commands import event_stream

    complete, shown = True, 0
    async with aclosing(event_stream.tail(settings, options)) as found:
        async for record in found:
            if isinstance(record, PartitionStalled):
                complete = False
                typer.echo(f"bcs: {record}", err=True)
                continue
            shown += 1
            if as_json:
                typer.echo(json.dumps(as_document(record)))
            else:
                present(as_text(record))
    if not shown and not as_json and not options.follow:
        typer.echo(f"Nothing was published to {counted(len(options.topics), 'topic')} yet.")
    return complete


def _validity(settings: Settings) -> Callable[[EventMessage], None]:
    from bcs.pipeline_config import pipelines_of

    decoder = EventDecoder(
        PLATFORM_PHASES | pipelines_of(settings).phases.keys(),
        max_event_bytes=settings.max_event_bytes,
        max_essays=settings.max_essays_per_batch,
    )

    def check(message: EventMessage) -> None:
        try:
            decoder.decode(message.event_type.topic, message.value, int(time.time() * 1000))
        except UndecodableMessage as error:
            raise UnusableEvent(f"{error}; --unchecked sends it all the same") from None

    return check


def _settings() -> Settings:
    from bcs.settings import load_settings

    # What goes wrong is said once, in a line of ours.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return load_settings()


def _place(place: Any) -> dict[str, Any]:
    return {"topic": place.topic, "partition": place.partition, "offset": place.offset}


def _text(key: bytes | None) -> str | None:
    return None if key is None else key.decode(errors="backslashreplace")
