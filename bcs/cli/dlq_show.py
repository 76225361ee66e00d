"""The output of `bcs dlq show`."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import typer

from bcs.cli.dlq_listing import text_of
from bcs.cli.output import print_json
from bcs.ops.wording import printable
from bcs.wire.dead_letters.decode import DeadLetter

_WIDTH = 16
_LIMIT_BYTES = 1024
_PRINTABLE = range(32, 127)


def print_dead_letter(dead_letter: DeadLetter, *, replayed: bool, as_json: bool) -> None:
    """Print a decoded dead letter."""
    details: dict[str, Any] = {
        "position": str(dead_letter.position),
        "replayed": replayed,
        "reason": dead_letter.reason,
        "service": dead_letter.service,
        "error": f"{dead_letter.error_type}: {dead_letter.error_message}",
        "batch": dead_letter.batch_id,
        "source": _source(dead_letter),
        "source_timestamp_ms": dead_letter.source_timestamp_ms,
        "attempts": dead_letter.attempts,
        "failures": dead_letter.failures,
        "first_failure": dead_letter.first_failure,
        "last_failure": dead_letter.last_failure,
        "key": _readable(dead_letter.key),
        "headers": [[name, _readable(value)] for name, value in dead_letter.headers],
        "truncated": dead_letter.truncated,
    }
    envelope = _as_json(dead_letter.value)
    if as_json:
        raw = None if dead_letter.value is None else base64.b64encode(dead_letter.value).decode()
        print_json({**details, "envelope": envelope, "value_base64": raw})
        return
    for name, value in details.items():
        if name == "headers":
            for header, text in details["headers"]:
                typer.echo(printable(f"{'header':20}{header}: {text}"))
        else:
            typer.echo(printable(f"{name:20}{text_of(value)}"))
    typer.echo("")
    if dead_letter.unread:
        typer.echo(f"The original could not be read; `replay` reads the message at {_source(dead_letter)}.")
    elif dead_letter.truncated:
        typer.echo(f"The dead letter is truncated; `replay` reads the original from {_source(dead_letter)}.")
        typer.echo(_hex_dump(dead_letter.beginning or b""))
    elif dead_letter.value is None:
        typer.echo("The original has no value (null).")
    elif envelope is not None:
        for line in json.dumps(envelope, indent=2, ensure_ascii=False).splitlines():
            typer.echo(printable(line))
    else:
        typer.echo(_hex_dump(dead_letter.value))


@dataclass(frozen=True, slots=True)
class NotADeadLetter:
    """A record on a dead-letter topic that is not a dead letter.

    :param problem: the kind of the record, or the reason why it is unreadable.
    """

    problem: str
    key: bytes | None
    value: bytes | None


def print_junk(junk: NotADeadLetter, *, as_json: bool) -> None:
    """Print a record that is not a dead letter, as bytes."""
    if as_json:
        raw = None if junk.value is None else base64.b64encode(junk.value).decode()
        print_json({"problem": junk.problem, "key": _readable(junk.key), "value_base64": raw})
        return
    typer.echo(printable(f"not a dead letter: {junk.problem}"), err=True)
    typer.echo(printable(f"{'key':20}{text_of(_readable(junk.key))}"))
    typer.echo("The message has no value (null)." if junk.value is None else _hex_dump(junk.value))


def _source(dead_letter: DeadLetter) -> str:
    if dead_letter.is_resolution:
        return "POST /internal/v1/pipelines/define"
    return f"{dead_letter.source_topic}/{dead_letter.source_partition}/{dead_letter.source_offset}"


def _readable(raw: bytes | None) -> str | None:
    """Bytes as text, or as base64 if they are not UTF-8."""
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(raw).decode()}"


def _as_json(raw: bytes | None) -> object:
    def refuse(constant: str) -> None:
        raise ValueError(constant)  # Python reads NaN and Infinity, but JSON has neither

    try:
        return json.loads(raw or b"", parse_constant=refuse)
    except (ValueError, RecursionError):
        return None


def _hex_dump(raw: bytes) -> str:
    lines = []
    for start in range(0, min(len(raw), _LIMIT_BYTES), _WIDTH):
        part = raw[start : start + _WIDTH]
        readable = "".join(chr(byte) if byte in _PRINTABLE else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):{_WIDTH * 3}} {readable}")
    if len(raw) > _LIMIT_BYTES:
        lines.append(f"... and {len(raw) - _LIMIT_BYTES} bytes more")
    return "\n".join(lines)
