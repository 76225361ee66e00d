"""One round trip on one of redis-py's connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from bcs.store.multiplexer import Command, packed


async def exchange(connection: Connection, commands: Sequence[Command]) -> list[Any]:
    """Send commands, and return their replies, with what Redis refused as errors among them.

    :raises RedisError: the connection is of no more use.
    """
    try:
        await connection.send_packed_command(packed(commands))
    except RuntimeError as error:
        # uvloop's way to say that the server has closed the connection, where asyncio raises ConnectionResetError.
        raise RedisConnectionError(str(error)) from error
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except ResponseError as error:
            replies.append(error)
        except ValueError as error:
            # redis-py can't take apart what is said behind a MOVED or an ASK.
            raise RedisConnectionError(f"an unusual refusal: {error}") from error
    return replies
