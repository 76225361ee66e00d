"""What `bcs dlq show` prints."""

from __future__ import annotations

import base64
import json
from typing import Any

import typer

from bcs.commands.dlq_listing import text_of
from bcs.commands.output import print_json, printable
from bcs.contracts.letters import DeadLetter

_WIDTH = 16
_LIMIT_BYTES = 1024
_PRINTABLE = range(32, 127)


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
            typer.echo(printable(f"{name:20}{text_of(value)}"))
    typer.echo("")
    if letter.truncated:
        typer.echo(f"The letter has only the beginning of the original; `replay` takes it from {_source(letter)}.")
    elif letter.value is None:
        typer.echo("The original has no value (null).")
    elif envelope is not None:
        for line in json.dumps(envelope, indent=2, ensure_ascii=False).splitlines():
            typer.echo(printable(line))
    else:
        typer.echo(_hex_dump(letter.value))


def _source(letter: DeadLetter) -> str:
    if letter.is_resolution:
        return "POST /internal/v1/pipelines/define"
    return f"{letter.source_topic}/{letter.source_partition}/{letter.source_offset}"


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


def _hex_dump(raw: bytes) -> str:
    lines = []
    for start in range(0, min(len(raw), _LIMIT_BYTES), _WIDTH):
        part = raw[start : start + _WIDTH]
        readable = "".join(chr(byte) if byte in _PRINTABLE else "." for byte in part)
        lines.append(f"{start:08x}  {part.hex(' '):{_WIDTH * 3}} {readable}")
    if len(raw) > _LIMIT_BYTES:
        lines.append(f"... and {len(raw) - _LIMIT_BYTES} bytes more")
    return "\n".join(lines)
