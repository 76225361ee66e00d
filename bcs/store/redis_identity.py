"""Which run of which Redis the connections lead to: another one may have less than the one before it acknowledged."""

from __future__ import annotations

from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from bcs.store.redis_errors import Unfit, reason
from bcs.store.redis_exchange import exchange

# Of the forty hexadecimal digits that a server gives itself at each start.
_CHARACTERS = 8


class RedisIdentity:
    """Learned by each connection as it is made. A server that will not tell is taken for always the same."""

    def __init__(self) -> None:
        self.run_id = ""

    async def on_connect(self, connection: Connection) -> None:
        """What redis-py does with a new connection, and then ask who is at its other end.

        :raises RedisConnectionError: whatever Redis refused of that.
        """
        try:
            await connection.on_connect()
        except ResponseError as error:
            raise Unfit(reason(error)) from error
        except (RuntimeError, ValueError) as error:
            # uvloop's way to say that the connection was closed, or what redis-py can't take apart.
            raise RedisConnectionError(str(error)) from error
        [reply] = await exchange(connection, [("INFO", "server")])
        if isinstance(reply, RedisError):
            return
        for line in reply.split(b"\r\n"):
            if line.startswith(b"run_id:"):
                self.run_id = line.removeprefix(b"run_id:").decode(errors="replace")[:_CHARACTERS]
