"""Connects to PostgreSQL, directly or through a pooler such as PgBouncer in transaction mode.

Such a pooler uses another server connection for each transaction. So the state of a session (prepared statements,
settings, advisory locks) would be lost, or found by another client. Through a pooler, each piece of work is therefore
one transaction, no statement has a name, and settings end with the transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg
from asyncpg.exceptions import ClientConfigurationError

from bcs.config.addresses import files_in
from bcs.config.files import file_version
from bcs.config.refused_logins import RefusedLogins
from bcs.config.store_urls import StoreUrl, database_url
from bcs.storage.postgres.fitness import ensure_usable

T = TypeVar("T")

ACCEPTS_NO_WRITES = "it accepts no writes: a standby, or default_transaction_read_only is on"
"""The problem of a server that asyncpg refuses as not writable."""

# No other settings, because PgBouncer refuses a client that sends a setting which it does not support.
_APPLICATION = "batch-conductor-service"
_STARTUP = {"timezone": "UTC"}
# The merge statement joins thousands of rows with lists whose length the planner can't know. It would expect short
# lists and compare each row with each. Where a few batches have most of the rows, the planner expects most of the rows
# in any batch, and would read whole tables for each batch.
_PLANNER = {"enable_nestloop": "off", "enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off"}
_SET_IN_TRANSACTION = "; ".join(f"SET LOCAL {name} = {value}" for name, value in _PLANNER.items())
# A pooler's greeting has a process id of its own. The tag of this statement ("SELECT 0" or "SELECT 1") shows the result
# without a prepared statement.
_SET_IF_DIRECT = "SELECT {settings} WHERE pg_backend_pid() = {server}"
_DIRECT = "SELECT 1"
_SETTINGS = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _PLANNER.items())
# To introspect a type, asyncpg turns the setting `jit` off and on for the session. So all types are introspected here.
_ARRAYS = ("boolean", "integer", "bigint", "numeric", "text", "uuid", "timestamptz")
_INTROSPECT = (
    f"SELECT {', '.join(f'${place}::{name}[]' for place, name in enumerate(_ARRAYS, start=1))}, "
    "current_setting('server_version_num'), current_setting('server_encoding')"
)
_CLOSED = (
    "it closed the connection during the handshake; "
    "a server does this, too, if it does not accept the client certificate: sslcert in BCS_DATABASE_URL"
)
# asyncpg's default. A statement without a name is parsed and planned each time.
_CACHED_STATEMENTS = 100


class UrlUnusable(OSError):
    """asyncpg can't use the URL any more, such as after a certificate was removed."""


class ArchiveConnection(asyncpg.Connection):
    """A connection.

    :ivar pooled: True if the connection leads through a pooler.
    """

    __slots__ = ("pooled",)

    pooled: bool


class Connector:
    """Makes connections to one database, and remembers whether they lead through a pooler.

    :param url: `postgresql://`; a text does not change.
    """

    def __init__(self, url: StoreUrl | str) -> None:
        self._url = database_url(url) if isinstance(url, str) else url
        self._startup = {"application_name": _APPLICATION, **_STARTUP}
        if "application_name" in parse_qs(urlsplit(self._url.current()).query):
            del self._startup["application_name"]  # our value would replace that of the URL
        self._pooled = False
        self._refused = RefusedLogins()

    async def connect(
        self, *_: object, connect_seconds: float | None = None, statement_seconds: float | None = None, **__: object
    ) -> ArchiveConnection:
        """Connect to a server that accepts writes. asyncpg's pool calls this with its own arguments.

        :param connect_seconds: the time for each attempt to connect; None where the caller has a deadline.
        :param statement_seconds: the time for each statement; None where the caller has a deadline.
        :raises DatabaseUnusable: the database can't hold the archive.
        """
        while True:
            connection = await self._opened(connect_seconds, statement_seconds)
            connection.pooled = self._pooled
            ready = False
            try:
                ready = await self._is_ready(connection)
            finally:
                if not ready:
                    connection.terminate()
            if ready:
                return connection

    async def _opened(self, connect_seconds: float | None, statement_seconds: float | None) -> ArchiveConnection:
        url, address = self._url.current(), self._url.address
        login = (url, *map(_version, files_in(url).values()))
        self._refused.ensure_due(address, login)
        try:
            connection = await self._connected(url, connect_seconds, statement_seconds)
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            self._refused.note(address, login, error)
            raise
        self._refused.forget(address)
        return connection

    async def _connected(
        self, url: str, connect_seconds: float | None, statement_seconds: float | None
    ) -> ArchiveConnection:
        try:
            for path in files_in(url).values():
                file_version(Path(path))  # asyncpg would wait for a pipe, and the event loop with it
            # With the URL, asyncpg reads the certificates again, too.
            connection: ArchiveConnection = await asyncpg.connect(  # type: ignore[call-overload]  # no timeout=None
                url,
                timeout=connect_seconds,
                command_timeout=statement_seconds,
                statement_cache_size=0 if self._pooled else _CACHED_STATEMENTS,
                connection_class=ArchiveConnection,
                server_settings=self._startup,
                # A standby lags behind, and accepts no writes.
                target_session_attrs="read-write",
            )
        except (OSError, ClientConfigurationError) as error:
            # asyncpg does not say which file it lacks, or is wrong.
            if problem := self._url.problem():
                raise UrlUnusable(f"{self._url.variable}: {problem}") from error
            raise
        except asyncpg.ConnectionDoesNotExistError as error:
            if "sslcert" not in parse_qs(urlsplit(url).query):
                raise
            # The alert with the reason is lost with the connection.
            raise ConnectionError(_CLOSED) from error
        return connection

    async def _is_ready(self, connection: ArchiveConnection) -> bool:
        """False for a connection that was found to lead through a pooler, and has to be made again."""
        if not connection.pooled:
            # These settings come with the greeting of a server or a pooler.
            settings = connection.get_settings()
            ensure_usable(connection.get_server_version().major, settings.server_encoding)
            statement = _SET_IF_DIRECT.format(settings=_SETTINGS, server=connection.get_server_pid())
            self._pooled = await connection.execute(statement) != _DIRECT
            return not self._pooled
        transaction = connection.transaction()
        await transaction.start()
        [(*_, version, encoding)] = await connection.fetch(_INTROSPECT, *[None] * len(_ARRAYS))
        await transaction.rollback()  # so that no state is left on the server connection
        ensure_usable(int(version) // 10_000, encoding)
        return True


def _version(path: str) -> tuple[int, ...] | None:
    try:
        return file_version(Path(path))
    except OSError:  # the connecting says what is wrong
        return None


async def perform(connection: Any, work: Callable[[Any], Awaitable[T]]) -> T:
    """Run work on a connection; through a pooler as one transaction."""
    if not connection.pooled:
        return await work(connection)
    async with connection.transaction():
        await connection.execute(_SET_IN_TRANSACTION)
        return await work(connection)
