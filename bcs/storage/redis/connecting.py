"""Makes redis-py's connections with the login and the certificates that hold at that moment.

redis-py keeps both in the objects of its connections, and uses such an object for many connections. This module is the
only one that overrides methods of these objects.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

from redis.asyncio import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, RedisSSLContext, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.driver_info import DriverInfo
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.maint_notifications import MaintNotificationsConfig

from bcs.config.files import file_version
from bcs.config.refused_logins import RefusedLogins
from bcs.config.store_urls import StoreUrl
from bcs.storage.redis.errors import UnusableServer, code_of, reason

_NO_TLS = ", not even the handshake of TLS; if it speaks no TLS there, BCS_REDIS_URL must begin with redis://"
_SECRETS = ("username", "password", "ssl_password")


class _Login(CredentialProvider):
    """The login of the URL, which redis-py asks for at each handshake; and what all connections share.

    :ivar tls_unanswered: True if the last connection with TLS was given up while it waited for the handshake.
    """

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        self.tls_unanswered = False
        self._refused = RefusedLogins()
        self._tls = _contexts.setdefault(url.family, _TlsContext())

    def get_credentials(self) -> Any:
        """The user and the password, the password alone, or nothing for a server without a login."""
        parts: dict[str, Any] = dict(parse_url(self.url.current()))
        user, password = parts.get("username", ""), parts.get("password", "")
        return (user, password) if user else (password,) if password else ()

    async def get_credentials_async(self) -> Any:
        """See `get_credentials`."""
        return self.get_credentials()

    def ensure_due(self) -> Any:
        """The login for a new connection.

        :raises UnusableServer: Redis has refused this login, so it has to wait before it is tried again.
        """
        login = self.get_credentials()
        self._refused.ensure_due(self.url.address, login)
        return login

    def refused(self, login: Any, error: AuthenticationError) -> UnusableServer:
        """Note that Redis has refused a login, and return the reason in plain words."""
        settings = self.url.login_settings
        refusal = UnusableServer(f"it does not accept the user or the password of {settings} ({error})")
        self._refused.note(self.url.address, login, refusal)
        return refusal

    def accepted(self) -> None:
        """Note that Redis has accepted a login."""
        self._refused.forget(self.url.address)

    def context(self, tls: RedisSSLContext) -> ssl.SSLContext:
        """The context for a new connection, from the files as they are now.

        :raises UnusableServer: a file can't be used.
        """
        password = cast("Any", parse_url(self.url.current())).get("ssl_password")
        try:
            return self._tls.made_of(tls, password)
        except (OSError, ValueError) as error:
            cause = self.url.problem() or "a file changed meanwhile"
            raise UnusableServer(f"{self.url.variable}: {cause}") from error


class _TlsContext:
    """The TLS context of all connections to the servers of one URL.

    It is kept while the files do not change: Python needs 20 ms for it, in which the event loop stands still.
    """

    def __init__(self) -> None:
        self._context: ssl.SSLContext | None = None
        self._made_from: list[tuple[int, ...] | None] = []

    def made_of(self, tls: RedisSSLContext, password: str | None) -> ssl.SSLContext:
        """The context, made anew if a file has changed. The password is not kept."""
        try:
            made_from = [_version(path) for path in (tls.certfile, tls.keyfile, tls.ca_certs, tls.ca_path)]
            if self._context is None or made_from != self._made_from:
                tls.context, tls.password = None, password
                self._context, self._made_from = tls.get(), made_from
        finally:
            tls.password = None
        return self._context


_contexts: WeakKeyDictionary[object, _TlsContext] = WeakKeyDictionary()


def _version(path: str | None) -> tuple[int, ...] | None:
    return None if path is None else file_version(Path(path))


class _LoginWaits(AbstractConnection):
    """A connection whose login waits after a refusal."""

    async def _connect(self) -> None:
        # Without its login, a connection is of no use. So it is not made either.
        self._tried = cast("_Login", self.credential_provider).ensure_due()
        await super()._connect()  # type: ignore[no-untyped-call, safe-super] # that of the class after this one

    async def on_connect(self) -> None:
        """See `AbstractConnection.on_connect`."""
        login = cast("_Login", self.credential_provider)
        try:
            await super().on_connect()
        except AuthenticationError as error:
            if code_of(error) == "NOAUTH":
                raise  # there was no login
            raise login.refused(self._tried, error) from error
        login.accepted()


class _PlainConnection(_LoginWaits, Connection):
    pass


class _TlsConnection(_LoginWaits, SSLConnection):
    """A connection that uses the certificates as they are when it connects, and does not wait when it disconnects."""

    async def _connect(self) -> None:
        login = cast("_Login", self.credential_provider)
        login.tls_unanswered = True
        try:
            await super()._connect()
        except Exception:
            login.tls_unanswered = False
            raise
        login.tls_unanswered = False

    def _connection_arguments(self) -> Any:
        tls = self.ssl_context
        tls.context = cast("_Login", self.credential_provider).context(tls)
        return super()._connection_arguments()

    async def disconnect(self, *arguments: Any, **options: Any) -> None:
        """See `SSLConnection.disconnect`."""
        # TLS would wait for the farewell of the server for up to 30 s, here or after the connection is forgotten.
        # An event loop of uvloop that is closed meanwhile may never end its `close`.
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*arguments, **options)


class _UnixSocket(UnixDomainSocketConnection):
    async def _connect(self) -> None:
        # redis-py would do its handshake here, and then once more, and would hide why a login is refused.
        self._reader, self._writer = await asyncio.open_unix_connection(path=self.path)


class _UnixConnection(_LoginWaits, _UnixSocket):
    pass


class _LocatedConnection(_PlainConnection):
    """A connection to the server that is the master when it connects.

    :param locate: returns host and port.
    """

    def __init__(self, *, locate: Callable[[], Awaitable[tuple[str, int]]], **options: Any) -> None:
        super().__init__(**options)
        self._locate = locate

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if not self.is_connected:
            self.host, self.port = await self._locate()
        await super().connect_check_health(check_health, retry_socket_connect)


class _LocatedTlsConnection(_LocatedConnection, _TlsConnection):
    pass


_KINDS: dict[Any, Any] = {
    Connection: _PlainConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}
_LOCATED: dict[Any, Any] = {Connection: _LocatedConnection, SSLConnection: _LocatedTlsConnection}


def late_cause(pool: ConnectionPool, cause: str) -> str:
    """The cause of a deadline that has passed, with what an operator can do where a server may speak no TLS.

    Redis takes a handshake of TLS for the beginning of a command, and waits for the rest.
    """
    return f"{cause}{_NO_TLS}" if pool.connection_kwargs["credential_provider"].tls_unanswered else cause


def connection_pool(
    url: StoreUrl, *, locate: Callable[[], Awaitable[tuple[str, int]]] | None = None, **options: Any
) -> ConnectionPool:
    """redis-py's pool for a URL; its object has no secret.

    :param locate: returns the host and the port of each new connection; None where they are in the URL.
    :param options: more options of the pool and its connections.
    """
    options |= {
        "protocol": 2,
        # One deadline limits a whole round trip; a timer for every read would cost more and limit less.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        # Without this option, redis-py reads its version from a file for each new connection.
        "driver_info": DriverInfo(),
        # With these notifications, redis-py does not notice a left-over reply on a pooled connection.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    url = _of_one(url)
    given: dict[str, Any] = dict(parse_url(url.current()))
    for name in _SECRETS:
        given.pop(name, None)
    kind = given.pop("connection_class", Connection)
    if locate is None:
        kind = _KINDS[kind]
    else:
        kind, given["locate"] = _LOCATED[kind], locate
    return ConnectionPool(kind, credential_provider=_Login(url), **given, **options)


def _of_one(url: StoreUrl) -> StoreUrl:
    """The URL with all that connections to several servers share; its server is replaced by the one that is located."""
    listed = url.servers.listed
    return url.at(*listed[0]) if listed else url


async def handshake(connection: Connection) -> None:
    """Do redis-py's handshake on a new connection.

    :raises AuthenticationError: Redis requires a login, and the settings have none.
    :raises RedisConnectionError: Redis refused a step.
    """
    try:
        await connection.on_connect()
    except (AuthenticationError, UnusableServer):
        raise
    except ResponseError as error:
        raise UnusableServer(reason(error)) from error
    except (RuntimeError, ValueError) as error:
        # uvloop raises RuntimeError for a closed connection, redis-py ValueError for a reply that it can't parse.
        raise RedisConnectionError(str(error)) from error
    except RedisConnectionError as error:
        if isinstance(error.__context__, ssl.SSLError):
            raise
        # The alert that has the reason is often lost with the connection.
        raise RedisConnectionError(f"{str(error).rstrip('.')}; {_closing(connection)}") from error


def _closing(connection: Connection) -> str:
    if isinstance(connection, SSLConnection):
        return "a server does this, too, if it does not accept the client certificate: ssl_certfile in BCS_REDIS_URL"
    return "a server that speaks only TLS does this, too: then BCS_REDIS_URL must begin with rediss:// or rediss+"
