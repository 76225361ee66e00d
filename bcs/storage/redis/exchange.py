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

# To pack so many takes about a millisecond.
_ARGUMENTS_PER_TURN = 4000


async def exchange(connection: Connection, commands: Sequence[Command]) -> list[Any]:
    """Send commands, and return their replies, with what Redis refused as errors among them.

    :raises RedisError: the connection is of no more use.
    """
    try:
        await connection.send_packed_command(await _packed(commands))
    except RuntimeError as error:
        # uvloop's way to say that the server has closed the connection, where asyncio raises ConnectionResetError.
        raise RedisConnectionError(str(error)) from error
    # There is no public way to the parser, and redis-py takes six calls for each reply. The replies of a round trip
    # mostly come together: all but the first are there already.
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
            # redis-py can't take apart what is said behind a MOVED or an ASK.
            raise RedisConnectionError(f"an unusual refusal: {error}") from error
        if isinstance(reply, RedisConnectionError):  # such as LOADING
            raise reply
        replies.append(reply)
    return replies


async def _packed(commands: Sequence[Command]) -> bytes:
    """Commands as they go over the wire. Where they are many or long, others have their turns meanwhile."""
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
