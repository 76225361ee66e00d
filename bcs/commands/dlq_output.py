"""What `bcs dlq` prints."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bcs.commands.output import counted, plain, present, print_json, printable, table
from bcs.contracts.letters import DeadLetter, Reference

if TYPE_CHECKING:
    from bcs.dlq.reading import Survey
    from bcs.dlq.replaying import Replayed

_UNREADABLE = "(not a letter of ours)"
_SAID_EVERY = 1000


@dataclass(slots=True)
class Group:
    """Letters of one topic and reason."""

    waiting: int = 0
    replayed: int = 0
    times: list[str] = field(default_factory=list)


def say_survey(survey: Survey, *, each: bool, as_json: bool) -> None:
    """Counts by topic and reason; with `each`, the letters themselves."""
    if each:
        _say_each(survey, as_json=as_json)
        return
    groups: dict[tuple[str, str], Group] = {}
    for reference, letter in survey.letters.items():
        group = groups.setdefault((reference.topic, letter.reason), Group())
        group.times.append(letter.timestamp)
        if reference in survey.replayed:
            group.replayed += 1
        else:
            group.waiting += 1
    for reference in survey.unreadable:
        groups.setdefault((reference.topic, _UNREADABLE), Group()).waiting += 1
    rows = [
        {
            "topic": topic,
            "reason": reason,
            "waiting": group.waiting,
            "replayed": group.replayed,
            "oldest": min(group.times, default=None),
            "newest": max(group.times, default=None),
        }
        for (topic, reason), group in sorted(groups.items())
    ]
    if as_json:
        print_json({"groups": rows})
    elif rows:
        columns = ("topic", "reason", "waiting", "replayed", "oldest", "newest")
        _say_rows(columns, rows)
    else:
        typer.echo("There are no dead letters.")


def _say_each(survey: Survey, *, as_json: bool) -> None:
    rows = [
        {
            "letter": str(reference),
            "reason": letter.reason,
            "batch": letter.batch_id,
            "time": letter.timestamp,
            "failures": letter.failures,
            "replayed": reference in survey.replayed,
        }
        for reference, letter in sorted(survey.letters.items())
    ]
    unreadable = {str(reference): problem for reference, problem in sorted(survey.unreadable.items())}
    if as_json:
        print_json({"letters": rows, "unreadable": unreadable})
        return
    columns = ("letter", "reason", "batch", "time", "failures", "replayed")
    _say_rows(columns, rows)
    for reference, problem in unreadable.items():
        typer.echo(f"{reference}: not a letter of ours: {problem}", err=True)


def say_letter(letter: DeadLetter, *, replayed: bool, as_json: bool) -> None:
    """One letter, decoded."""
    about: dict[str, Any] = {
        "letter": str(letter.reference),
        "replayed": replayed,
        "reason": letter.reason,
        "error": f"{letter.error_type}: {letter.error_message}",
        "batch": letter.batch_id,
        "source": _source(letter),
        "source_timestamp_ms": letter.source_timestamp_ms,
        "attempts": letter.attempts,
        "failures": letter.failures,
        "first_failure": letter.first_failure,
        "last_failure": letter.last_failure,
        "key": _readable(letter.key),
        "headers": [[name, _readable(value)] for name, value in letter.headers],
        "truncated": letter.truncated,
    }
    envelope = _as_json(letter.value)
    if as_json:
        raw = None if letter.value is None else base64.b64encode(letter.value).decode()
        print_json({**about, "envelope": envelope, "value_base64": raw})
        return
    for name, value in about.items():
        if name == "headers":
            for header, text in about["headers"]:
                typer.echo(printable(f"{'header':20}{header}: {text}"))
        else:
            typer.echo(printable(f"{name:20}{_text(value)}"))
    typer.echo("")
    if letter.truncated:
        typer.echo(f"The letter has only the beginning of the original; `replay` takes it from {_source(letter)}.")
    elif letter.value is None:
        typer.echo("The original has no value (null).")
    elif envelope is not None:
        typer.echo(json.dumps(envelope, indent=2, ensure_ascii=False))
    else:
        typer.echo(_hex_dump(letter.value))


def say_plan(letters: Sequence[DeadLetter], *, as_json: bool) -> None:
    """What would go where."""
    rows = [
        {
            "letter": str(letter.reference),
            "goes_to": "the service" if letter.is_resolution else f"{letter.source_topic}/{letter.source_partition}",
            "reason": letter.reason,
            "batch": letter.batch_id,
            "failures": letter.failures,
        }
        for letter in letters
    ]
    if as_json:
        print_json({"would_replay": rows})
        return
    columns = ("letter", "goes_to", "reason", "batch", "failures")
    _say_rows(columns, rows)
    typer.echo(f"{counted(len(rows), 'letter')} would be put back; nothing was done.")


@dataclass(slots=True)
class Outcome:
    """What became of the letters so far."""

    wanted: int
    quiet: bool
    progress: Progress | None
    replayed: int = 0
    failed: dict[Reference, str] = field(default_factory=dict)

    def tell(self, letter: Replayed) -> None:
        """One more is decided."""
        if letter.problem is None:
            self.replayed += 1
        else:
            self.failed[letter.letter.reference] = letter.problem
            if not self.quiet:
                typer.echo(f"{letter.letter.reference}: not put back: {letter.problem}", err=True)
        decided = self.replayed + len(self.failed)
        if self.progress:
            self.progress.advance(self.progress.task_ids[0])
        elif not self.quiet and decided % _SAID_EVERY == 0:
            typer.echo(f"{decided} of {self.wanted}")


@contextmanager
def say_progress(wanted: int, *, as_json: bool) -> Iterator[Outcome]:
    """A bar on a terminal, a line now and then elsewhere, and what it came to."""
    console = Console()
    if console.is_terminal and not as_json:
        columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            progress.add_task("replaying", total=wanted)
            outcome = Outcome(wanted, quiet=False, progress=progress)
            yield outcome
    else:
        outcome = Outcome(wanted, quiet=as_json, progress=None)
        yield outcome
    if as_json:
        failed = {str(reference): problem for reference, problem in sorted(outcome.failed.items())}
        print_json({"wanted": wanted, "replayed": outcome.replayed, "failed": failed})
    else:
        typer.echo(f"{outcome.replayed} of {wanted} letters put back, {len(outcome.failed)} could not be.")


def _say_rows(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    page = table(*columns, right=("waiting", "replayed", "failures"))
    for row in rows:
        page.add_row(*(plain(_text(row[column])) for column in columns))
    present(page)


def _source(letter: DeadLetter) -> str:
    if letter.is_resolution:
        return "POST /internal/v1/pipelines/define"
    return f"{letter.source_topic}/{letter.source_partition}/{letter.source_offset}"


def _text(value: object) -> str:
    return "-" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _readable(raw: bytes | None) -> str | None:
    """Bytes as text, and as base64 where they are none."""
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(raw).decode()}"


def _as_json(raw: bytes | None) -> object:
    try:
        return json.loads(raw or b"")
    except (ValueError, RecursionError):
        return None


def _hex_dump(raw: bytes, width: int = 16, limit: int = 1024) -> str:
    lines = [
        f"{start:08x}  {raw[start : start + width].hex(' '):{width * 3}} "
        + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in raw[start : min(start + width, limit)])
        for start in range(0, min(len(raw), limit), width)
    ]
    rest = len(raw) - limit
    return "\n".join(lines) + (f"\n... and {rest} bytes more" if rest > 0 else "")
