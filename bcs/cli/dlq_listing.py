"""The output of `bcs dlq list` and of a dry run: rows for a pipe, and short lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import typer

from bcs.cli.output import on_terminal, plain, present, print_json, table
from bcs.ops.wording import counted, printable
from bcs.wire.dead_letters.decode import DeadLetter
from bcs.wire.published import SERVICE

if TYPE_CHECKING:
    from bcs.ops.dlq.reading import DeadLetterIndex

_UNREADABLE = "(not a dead letter of BCS)"
_SECONDS_CHARACTERS = 19


@dataclass(slots=True)
class Group:
    """The dead letters of one topic, reason, producer and service."""

    waiting: int = 0
    replayed: int = 0
    times: list[str] = field(default_factory=list)


def print_index(index: DeadLetterIndex, *, each: bool, as_json: bool) -> None:
    """Print counts by topic, reason, producer and service; with `each`, print every dead letter."""
    if each:
        _print_each(index, as_json=as_json)
        return
    groups: dict[tuple[str, str, str, str], Group] = {}
    for position, dead_letter in index.dead_letters.items():
        key = position.topic, dead_letter.reason, dead_letter.producer or "", dead_letter.service
        group = groups.setdefault(key, Group())
        group.times.append(dead_letter.timestamp)
        if position in index.replayed:
            group.replayed += 1
        else:
            group.waiting += 1
    for position in index.unreadable:
        groups.setdefault((position.topic, _UNREADABLE, "", ""), Group()).waiting += 1
    rows: list[dict[str, Any]] = [
        {
            "topic": topic,
            "reason": reason,
            "producer": producer or None,
            "waiting": group.waiting,
            "replayed": group.replayed,
            "oldest": min(group.times, default=None),
            "newest": max(group.times, default=None),
            "service": service or None,
        }
        for (topic, reason, producer, service), group in sorted(groups.items())
    ]
    if as_json:
        print_json({"groups": rows})
    elif not rows:
        typer.echo(nothing_selected(index.total))
    elif on_terminal():
        # The name of a topic is too long for a column.
        for topic, of_topic in groupby(rows, key=lambda row: row["topic"]):
            typer.echo(printable(topic))
            short = [{**row, "oldest": _seconds(row["oldest"]), "newest": _seconds(row["newest"])} for row in of_topic]
            shared = any(row["service"] not in (None, SERVICE) for row in short)
            _print_rows(
                ("reason", "producer", "waiting", "replayed", "oldest", "newest", *(["service"] if shared else [])),
                short,
            )
    else:
        _print_rows(("topic", "reason", "producer", "waiting", "replayed", "oldest", "newest", "service"), rows)


def _print_each(index: DeadLetterIndex, *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "position": str(position),
            "reason": dead_letter.reason,
            "batch": dead_letter.batch_id,
            "time": dead_letter.timestamp,
            "failures": dead_letter.failures,
            "replayed": position in index.replayed,
            "service": dead_letter.service,
            "producer": dead_letter.producer,
        }
        for position, dead_letter in sorted(index.dead_letters.items())
    ]
    unreadable = {str(position): junk.problem for position, junk in sorted(index.unreadable.items())}
    if as_json:
        print_json({"dead_letters": rows, "unreadable": unreadable})
        return
    if on_terminal():
        for row in rows:
            state = "replayed" if row["replayed"] else "waits"
            typer.echo(row["position"])
            summary = f"  {row['reason']}, batch {text_of(row['batch'])}, {_seconds(row['time'])}"
            writer = "" if row["service"] == SERVICE else f", from {row['service']}"
            typer.echo(printable(f"{summary}, {counted(row['failures'], 'failure')}, {state}{writer}"))
    elif rows or unreadable:
        _print_rows(("position", "reason", "batch", "time", "failures", "replayed", "service", "producer"), rows)
    if not rows and not unreadable:
        typer.echo(nothing_selected(index.total))
    for position, problem in unreadable.items():
        typer.echo(f"{position}: not a dead letter of BCS: {problem}", err=True)


def nothing_selected(total: int) -> str:
    """The reason why there is nothing to show.

    :param total: the number of dead letters on the topics.
    """
    if not total:
        return "There are no dead letters."
    return f"None of the {total:,} dead letters matches." if total > 1 else "The only dead letter does not match."


def print_plan(dead_letters: Sequence[DeadLetter], *, as_json: bool) -> None:
    """Print the target of each dead letter."""
    rows: list[dict[str, Any]] = [
        {
            "position": str(dead_letter.position),
            "goes_to": "the service"
            if dead_letter.is_resolution
            else f"{dead_letter.source_topic}/{dead_letter.source_partition}",
            "reason": dead_letter.reason,
            "batch": dead_letter.batch_id,
            "failures": dead_letter.failures,
        }
        for dead_letter in dead_letters
    ]
    if as_json:
        print_json({"would_replay": rows})
        return
    if on_terminal():
        for row in rows:
            typer.echo(row["position"])
            typer.echo(printable(f"  to {row['goes_to']}; {row['reason']}, batch {text_of(row['batch'])}"))
    else:
        _print_rows(("position", "goes_to", "reason", "batch", "failures"), rows)
    typer.echo(f"{counted(len(rows), 'dead letter')} would be replayed; nothing was done.")


def _print_rows(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    if not on_terminal():
        # The columns are not aligned, because there may be very many rows.
        for line in (dict(zip(columns, columns, strict=True)), *rows):
            typer.echo("\t".join(printable(text_of(line[column])) for column in columns))
        return
    page = table(*columns, right=("waiting", "replayed", "failures"))
    for row in rows:
        page.add_row(*(plain(text_of(row[column])) for column in columns))
    present(page)


def _seconds(time: object) -> str:
    """A time for a person, in seconds. The JSON and a pipe have the exact time."""
    return "-" if time is None else str(time)[:_SECONDS_CHARACTERS].replace("T", " ")


def text_of(value: object) -> str:
    """A value as text for a line."""
    return "-" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)
