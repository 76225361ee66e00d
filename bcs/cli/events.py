"""`bcs events`: samples of the events that BCS reads, a producer, and a view of the published messages."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcs.cli.event_files import EventMessage, UnusableEvent, messages_in
from bcs.cli.options import PANEL, AsJson, command_group
from bcs.cli.output import plain, present, print_json
from bcs.cli.published import as_document, as_text
from bcs.errors import PartitionStalled, UndecodableMessage
from bcs.ops.wording import counted
from bcs.runtime import running
from bcs.wire import topics
from bcs.wire.decoding import EventDecoder
from bcs.wire.producing import EventType, Sample, event_type_of, sample_events

if TYPE_CHECKING:
    from bcs.cli.event_stream import TailOptions
    from bcs.config.settings import Settings

app = command_group("events")

_FAILED = 1
_SAMPLE_ESSAYS = ("essay_1", "essay_2", "essay_3")


def _an_event_type(text: str, parameter: str) -> EventType:
    known = event_type_of(text)
    if known is None:
        names = ", ".join(event_type.value for event_type in EventType)
        raise typer.BadParameter(f"it is not one of {names}, nor one of their topics", param_hint=parameter)
    return known


@app.callback(rich_help_panel=PANEL)
def events() -> None:
    """Events: make samples, send events as the platform does, and watch the messages that BCS publishes."""


@app.command()
def sample(
    event_type: Annotated[
        str,
        typer.Argument(
            metavar="TYPE", help=f"{', '.join(EventType)}, or the topic of one of them.", show_default=False
        ),
    ],
    batch: Annotated[str, typer.Option("--batch", help="The batch's id.")] = "batch_1",
    essay: Annotated[
        list[str] | None,
        typer.Option("--essay", help="An essay that completed the phase; repeatable. [default: essay_1 to essay_3]"),
    ] = None,
    failed: Annotated[
        list[str] | None, typer.Option("--failed", help="An essay that failed in the phase; repeatable.")
    ] = None,
    phase: Annotated[
        str, typer.Option("--phase", help="The phase of an ELSBatchPhaseOutcomeV1; other types ignore it.")
    ] = "spellcheck",
) -> None:
    """Print a valid event with new ids and the present time. A type about one essay gives an event for each essay.

    `bcs events sample BatchEssaysRegistered --batch b1 | bcs events send -` registers a batch.
    """
    kind = _an_event_type(event_type, "TYPE")
    completed = (essay or []) if failed else essay or _SAMPLE_ESSAYS
    about = Sample(batch_id=batch, completed=completed, failed=failed or (), phase=phase)
    for event in sample_events(kind, about, now=datetime.now(UTC)):
        print_json(event)


@app.command()
def schema(
    topic: Annotated[
        str | None,
        typer.Argument(metavar="[TOPIC]", help="A topic, or the event type of one. [default: all topics]"),
    ] = None,
    asyncapi: Annotated[
        bool, typer.Option("--asyncapi", help="Print an AsyncAPI 3.0 document about all topics.")
    ] = False,
) -> None:
    """Print the JSON Schema of the messages on a topic that BCS reads or writes: its values, or all topics' values."""
    from bcs.wire.asyncapi import MESSAGES, asyncapi_document, value_schema

    if asyncapi:
        if topic is not None:
            raise typer.BadParameter("it describes all topics", param_hint="--asyncapi")
        print_json(asyncapi_document())
        return
    if topic is None:
        print_json({name: value_schema(name) for name in MESSAGES})
        return
    found = [name for name, messages in MESSAGES.items() if topic in (name, messages[0].name)]
    if not found:
        raise typer.BadParameter(f"it is not one of {', '.join(MESSAGES)}", param_hint="TOPIC")
    print_json(value_schema(found[0]))


@app.command()
def send(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(
            metavar="FILE|-", help="A file with one or more JSON documents; - reads the input.", show_default=False
        ),
    ],
    topic: Annotated[
        str | None,
        typer.Option(
            "--topic", metavar="TOPIC", help="A topic that BCS reads, or an event type. [default: by event_type]"
        ),
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="The Kafka key. [default: as the producers set it]")] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Send invalid events, too: the service turns them into dead letters.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send events to Kafka as the platform's producers do. Exits with 1, and sends nothing, if an event is invalid."""
    from bcs.cli.event_stream import produce

    event_type = None if topic is None else _an_event_type(topic, "--topic")
    settings = _settings()
    check = None if unchecked else _validity(settings)
    messages = messages_in(
        file.read(),
        event_type=event_type,
        key=None if key is None else key.encode(errors="surrogateescape"),
        check=check,
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
    skipped: Annotated[bool, typer.Option("--skipped", help="Show only pruned phases.")] = False,
    dlq: Annotated[bool, typer.Option("--dlq", help="Show only dead letters.")] = False,
    last: Annotated[int, typer.Option("--last", min=0, help="How many existing messages to show first.")] = 10,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for new messages, and show them.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")] = False,
) -> None:
    """Show the messages that BCS publishes, decoded: the newest ones, then each new message, until Ctrl-C."""
    from bcs.cli.event_stream import TailOptions

    wanted = [topics.PHASE_SKIPPED] if skipped or not dlq else []
    wanted += topics.DEAD_LETTERS if dlq or not skipped else []
    options = TailOptions(topics=wanted, last=last, follow=follow)
    complete = True
    # Ctrl-C is the usual way to end the command.
    with suppress(KeyboardInterrupt):
        complete = running.run(_tail, _settings(), options, as_json)
    if not complete:
        raise typer.Exit(_FAILED)


async def _tail(settings: Settings, options: TailOptions, as_json: bool) -> bool:
    """Print all messages.

    :returns: True if all messages could be read.
    """
    from bcs.cli import event_stream

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
    from bcs.config.pipelines import pipelines_of

    decoder = EventDecoder(
        pipelines_of(settings).phases.keys(),
        keep_unknown_phases=settings.keep_unknown_phases,
        max_event_bytes=settings.max_event_bytes,
        max_essays=settings.max_essays_per_batch,
    )

    def check(message: EventMessage) -> None:
        try:
            decoder.decode(message.event_type.topic, message.value, int(time.time() * 1000))
        except UndecodableMessage as error:
            raise UnusableEvent(f"{error}; --unchecked sends it anyway") from None

    return check


def _settings() -> Settings:
    from bcs.config.loading import load_settings

    # BCS prints each error once, in its own line.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return load_settings()


def _place(place: Any) -> dict[str, Any]:
    return {"topic": place.topic, "partition": place.partition, "offset": place.offset}


def _text(key: bytes | None) -> str | None:
    return None if key is None else key.decode(errors="backslashreplace")
