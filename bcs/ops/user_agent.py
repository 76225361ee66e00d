"""How commands name themselves to the service, for the history and the log."""

from __future__ import annotations

from contextvars import ContextVar

from bcs import __version__

COMMAND: ContextVar[str | None] = ContextVar("command", default=None)
"""The command that runs, such as `resolve`."""


def user_agent() -> str:
    """Such as `bcs/0.2.0 resolve`."""
    command = COMMAND.get()
    return f"bcs/{__version__}" if command is None else f"bcs/{__version__} {command}"
