"""Commands as they go over the wire to Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from hiredis import pack_command

Command = tuple[str | bytes | int | float, ...]

# redis-py's own packing is written in Python. The stub of this one knows only commands of one word.
packed_one = cast("Callable[[Command], bytes]", pack_command)


def packed(commands: Iterable[Command]) -> bytes:
    """Commands, one behind the other."""
    return b"".join(map(packed_one, commands))
