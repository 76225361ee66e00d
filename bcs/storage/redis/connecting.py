"""Makes redis-py's connections with the login and the certificates that hold at that moment.

redis-py keeps both in the objects of its connections, and uses such an object for many connections. This module is the
only one that overrides methods of these objects.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import RedisSSLContext, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.driver_info import DriverInfo
from redis.maint_notifications import MaintNotificationsConfig

from bcs.config.files import file_version
from bcs.config.store_urls import StoreUrl
from bcs.storage.redis.errors import UnusableServer

_SECRETS = ("username", "password", "ssl_password")


class _Login(CredentialProvider):
    """The login of the URL, which redis-py asks for at each handshake; and what all TLS connections share."""

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        self._context: ssl.SSLContext | None = None
        self._made_from: list[tuple[int, ...] | None] = []

    def get_credentials(self) -> Any:
        """The user and the password, the password alone, or nothing for a server without a login."""
        parts: dict[str, Any] = dict(parse_url(self.url.current()))
        user, password = parts.get("username", ""), parts.get("password", "")
        return (user, password) if user else (password,) if password else ()

    async def get_credentials_async(self) -> Any:
        """See `get_credentials`."""
        return self.get_credentials()

    def context(self, tls: RedisSSLContext) -> ssl.SSLContext:
        """The context for a new connection, from the files as they are now.

        It is kept while the files do not change: Python needs 20 ms for it, in which the event loop stands still.

        :raises UnusableServer: a file can't be used.
        """
        password = cast("Any", parse_url(self.url.current())).get("ssl_password")
        try:
            made_from = [_version(path) for path in (tls.certfile, tls.keyfile, tls.ca_certs, tls.ca_path)]
            if self._context is None or made_from != self._made_from:
                tls.context, tls.password = None, password
                self._context, self._made_from = tls.get(), made_from
        except (OSError, ValueError) as error:
            cause = self.url.problem() or "a file changed meanwhile"
            raise UnusableServer(f"{self.url.variable}: {cause}") from error
        finally:
            tls.password = None
        return self._context


def _version(path: str | None) -> tuple[int, ...] | None:
    return None if path is None else file_version(Path(path))


class _TlsConnection(SSLConnection):
    """A connection that uses the certificates as they are when it connects."""

    def _connection_arguments(self) -> Any:
        tls = self.ssl_context
        tls.context = cast("_Login", self.credential_provider).context(tls)
        return super()._connection_arguments()


class _UnixConnection(UnixDomainSocketConnection):
    async def _connect(self) -> None:
        # redis-py would do its handshake here, and then once more, and would hide why a login is refused.
        self._reader, self._writer = await asyncio.open_unix_connection(path=self.path)


_KINDS: dict[Any, Any] = {SSLConnection: _TlsConnection, UnixDomainSocketConnection: _UnixConnection}


def connection_pool(url: StoreUrl, **options: Any) -> ConnectionPool:
    """redis-py's pool for a URL; its object has no secret.

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
    given: dict[str, Any] = dict(parse_url(url.current()))
    for name in _SECRETS:
        given.pop(name, None)
    kind = given.pop("connection_class", Connection)
    return ConnectionPool(_KINDS.get(kind, kind), credential_provider=_Login(url), **given, **options)
