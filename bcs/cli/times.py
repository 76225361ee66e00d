"""Times and ages as options of commands."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

TIME_HELP = "2026-01-31T08:00:00Z, or an age such as 90m, 12h or 2d"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_age = re.compile(r"(\d{1,9})([smhd])").fullmatch


def checked_time(text: str | None) -> str | None:
    """A time as RFC 3339, from one or from an age such as 90m or 2d; a time without a zone is UTC.

    :raises BadParameter: it is neither.
    """
    if text is None:
        return None
    age = _age(text)
    try:
        if age:
            return (datetime.now(UTC) - timedelta(seconds=int(age[1]) * _UNITS[age[2]])).isoformat()
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"it must be like {TIME_HELP}") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).isoformat()


def checked_age(text: str) -> str:
    """An age as a number of seconds.

    :raises BadParameter: it is none.
    """
    age = _age(text)
    if not age or not int(age[1]):
        raise typer.BadParameter("it must be like 90m, 12h or 2d")
    return str(int(age[1]) * _UNITS[age[2]])


Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="TIME", callback=checked_time, help=f"Then or later: {TIME_HELP}.", show_default=False
    ),
]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", callback=checked_time, help="Then or earlier.", show_default=False),
]
