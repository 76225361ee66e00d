"""The arguments and options with which `bcs dlq` selects dead letters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from bcs.ops.dlq.selection import DeadLetterRange, Selection, dead_letter_topics_of, parse_timestamp


def a_timestamp(text: str) -> datetime:
    """A time from the command line."""
    try:
        return parse_timestamp(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def position_or_range(text: str) -> str:
    """One position or a range, from the command line."""
    try:
        DeadLetterRange.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def one_position(text: str) -> str:
    """One position, from the command line."""
    place = DeadLetterRange.parse(position_or_range(text))
    if place.first != place.last:
        raise typer.BadParameter("one dead letter, not a range")
    return text


DeadLetters = Annotated[
    list[str] | None,
    typer.Argument(
        parser=position_or_range, metavar="[POSITION]...", help="topic/partition/offset or topic/partition/first-last."
    ),
]
Topics = Annotated[list[str] | None, typer.Option("--topic", help="A source topic or a dead-letter topic; repeatable.")]
Reasons = Annotated[list[str] | None, typer.Option("--reason", help="A reason as `list` shows it; repeatable.")]
Batches = Annotated[list[str] | None, typer.Option("--batch", help="A batch's id; repeatable.")]
Since = Annotated[
    datetime | None,
    typer.Option(
        parser=a_timestamp, metavar="TIME", help="Written at this time or later, such as 2026-05-03T08:00:00Z."
    ),
]
Services = Annotated[
    list[str] | None, typer.Option("--service", help="The service that wrote the dead letter; repeatable.")
]
Until = Annotated[datetime | None, typer.Option(parser=a_timestamp, metavar="TIME", help="Written before this time.")]


def selection_of(
    dead_letters: list[str] | None,
    topic: list[str] | None,
    reason: list[str] | None,
    batch: list[str] | None,
    since: datetime | None,
    until: datetime | None,
    service: list[str] | None,
) -> Selection:
    """The selection from the options of a command."""
    return Selection(
        ranges=tuple(map(DeadLetterRange.parse, dead_letters or ())),
        topics=dead_letter_topics_of(topic or ()),
        reasons=frozenset(reason or ()),
        batches=frozenset(batch or ()),
        since=since,
        until=until,
        services=frozenset(service or ()),
    )
