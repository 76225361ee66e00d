"""Redis commands, and their form on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from hiredis import pack_command

Command = tuple[str | bytes | int | float, ...]

# Faster than redis-py's own packing in Python. Its type stub allows only commands of one word.
packed_one = cast("Callable[[Command], bytes]", pack_command)


def packed(commands: Iterable[Command]) -> bytes:
    """The bytes of several commands."""
    return b"".join(map(packed_one, commands))
