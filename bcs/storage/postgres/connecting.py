"""Connects to PostgreSQL, straight or through a pooler such as PgBouncer in transaction mode.

Such a pooler gives a client another server connection for each transaction. What a session keeps is then found, or
missed, by somebody else: prepared statements, settings, advisory locks. So there each piece of work is one transaction,
no statement has a name, and settings end with the transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg

from bcs.storage.postgres.fitness import ensure_usable

T = TypeVar("T")

TAKES_NO_WRITES = "it takes no writes: a standby, or default_transaction_read_only is on"
"""What is wrong with a server that asyncpg does not choose for these reasons."""

# No others, for PgBouncer refuses a client that sends settings which it does not know.
_APPLICATION = "batch-conductor-service"
_STARTUP = {"timezone": "UTC"}
# The merge statement joins thousands of rows with lists whose length the planner can't know: it would take them for
# short and compare each with each. Where few batches have most rows, the planner expects most rows in any batch, and
# would read whole tables for each of them.
_PLANNER = {"enable_nestloop": "off", "enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off"}
_SET_IN_TRANSACTION = "; ".join(f"SET LOCAL {name} = {value}" for name, value in _PLANNER.items())
# A pooler answers with a process id of its own making. The number of rows is told without a prepared statement.
_SET_IF_DIRECT = "SELECT {settings} WHERE pg_backend_pid() = {server}"
_DIRECT = "SELECT 1"
_SETTINGS = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _PLANNER.items())
# To learn a type asyncpg turns the setting `jit` off for the session and on again.
_ARRAYS = ("boolean", "integer", "bigint", "numeric", "text", "uuid", "timestamptz")
_LEARN = (
    f"SELECT {', '.join(f'${place}::{name}[]' for place, name in enumerate(_ARRAYS, start=1))}, "
    "current_setting('server_version_num'), current_setting('server_encoding')"
)
# asyncpg's own default. A statement without a name is parsed and planned each time.
_CACHED_STATEMENTS = 100


class ArchiveConnection(asyncpg.Connection):
    """A connection that knows whether it leads through a pooler."""

    __slots__ = ("pooled",)

    pooled: bool


class Connector:
    """Makes connections to one database. It remembers that there is a pooler, which saves the next one a connection.

    :param url: `postgresql://`.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._startup = {"application_name": _APPLICATION, **_STARTUP}
        if "application_name" in parse_qs(urlsplit(url).query):
            del self._startup["application_name"]  # ours would win
        self._pooled = False

    async def connect(
        self, *_: object, connect_seconds: float | None = None, statement_seconds: float | None = None, **__: object
    ) -> ArchiveConnection:
        """A connection to a server that takes writes; asyncpg's pool calls it with arguments of its own.

        :raises DatabaseUnusable: it can't keep the record.
        :param connect_seconds: for each attempt to connect; None where a scope around it bounds it.
        :param statement_seconds: for each statement; None where a scope around it bounds it.
        """
        while True:
            connection: ArchiveConnection = await asyncpg.connect(  # type: ignore[call-overload]  # no timeout=None
                self._url,
                timeout=connect_seconds,
                command_timeout=statement_seconds,
                statement_cache_size=0 if self._pooled else _CACHED_STATEMENTS,
                connection_class=ArchiveConnection,
                server_settings=self._startup,
                # A standby is behind, and takes nothing.
                target_session_attrs="read-write",
            )
            connection.pooled = self._pooled
            ready = False
            try:
                ready = await self._is_ready(connection)
            finally:
                if not ready:
                    connection.terminate()
            if ready:
                return connection

    async def _is_ready(self, connection: ArchiveConnection) -> bool:
        """False for a connection that has to be made anew, since it leads through a pooler."""
        if not connection.pooled:
            # A server tells these of its own accord, as a pooler did when it began.
            settings = connection.get_settings()
            ensure_usable(connection.get_server_version().major, settings.server_encoding)
            statement = _SET_IF_DIRECT.format(settings=_SETTINGS, server=connection.get_server_pid())
            self._pooled = await connection.execute(statement) != _DIRECT
            return not self._pooled
        transaction = connection.transaction()
        await transaction.start()
        [(*_, version, encoding)] = await connection.fetch(_LEARN, *[None] * len(_ARRAYS))
        await transaction.rollback()  # so nothing of it is left on the server connection
        ensure_usable(int(version) // 10_000, encoding)
        return True


async def perform(connection: Any, work: Callable[[Any], Awaitable[T]]) -> T:
    """Do something with a connection, through a pooler as one transaction."""
    if not connection.pooled:
        return await work(connection)
    async with connection.transaction():
        await connection.execute(_SET_IN_TRANSACTION)
        return await work(connection)
