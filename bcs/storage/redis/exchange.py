"""One round trip on one of redis-py's connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyio.lowlevel import checkpoint
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from bcs.storage.redis.commands import Command, packed

# Packing so many arguments takes about a millisecond.
_ARGUMENTS_PER_TURN = 4000


async def exchange(connection: Connection, commands: Sequence[Command]) -> list[Any]:
    """Send commands, and return their replies; a refused command has an error in its place.

    :raises RedisError: the connection can't be used any more.
    """
    try:
        await connection.send_packed_command(await _packed(commands))
    except RuntimeError as error:
        # uvloop raises this for a closed connection, where asyncio raises ConnectionResetError.
        raise RedisConnectionError(str(error)) from error
    # The parser has no public attribute, and redis-py's own method needs six calls for each reply. The replies of a
    # round trip mostly arrive together, so all but the first can be taken from the buffer.
    streams: Any = connection
    reader = streams._parser._reader
    replies: list[Any] = []
    while len(replies) < len(commands):
        try:
            reply = reader.gets() if replies else NOT_ENOUGH_DATA
            if reply is NOT_ENOUGH_DATA:
                reply = await connection.read_response()
        except ResponseError as error:
            reply = error
        except ValueError as error:
            # redis-py can't parse some texts after MOVED or ASK.
            raise RedisConnectionError(f"an unusual refusal: {error}") from error
        if isinstance(reply, RedisConnectionError):  # such as LOADING
            raise reply
        replies.append(reply)
    return replies


async def _packed(commands: Sequence[Command]) -> bytes:
    """The bytes of commands. For many or long commands, other tasks run in between."""
    if sum(map(len, commands)) <= _ARGUMENTS_PER_TURN:
        return packed(commands)
    parts: list[bytes] = []
    arguments = 0
    for command in commands:
        parts.append(packed([command]))
        arguments += len(command)
        if arguments >= _ARGUMENTS_PER_TURN:
            arguments = 0
            await checkpoint()
    return b"".join(parts)
