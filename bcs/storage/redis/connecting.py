"""Makes redis-py's connections with the login and the certificates that hold at that moment.

redis-py keeps both in the objects of its connections, and uses such an object for many connections. This module is the
only one that overrides methods of these objects.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from redis.asyncio import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import parse_url
from redis.credentials import CredentialProvider

from bcs.config.store_urls import StoreUrl
from bcs.storage.redis.errors import UnusableServer

_SECRETS = ("username", "password", "ssl_password")


class _Login(CredentialProvider):
    """The login of the URL, which redis-py asks for at each handshake."""

    def __init__(self, url: StoreUrl) -> None:
        self.url = url

    def get_credentials(self) -> Any:
        """The user and the password, the password alone, or nothing for a server without a login."""
        parts: dict[str, Any] = dict(parse_url(self.url.current()))
        user, password = parts.get("username", ""), parts.get("password", "")
        return (user, password) if user else (password,) if password else ()

    async def get_credentials_async(self) -> Any:
        """See `get_credentials`."""
        return self.get_credentials()


class _TlsConnection(SSLConnection):
    """A connection that reads its certificates again each time it connects."""

    def _connection_arguments(self) -> Any:
        url = cast("_Login", self.credential_provider).url
        tls = self.ssl_context
        tls.context = None
        tls.password = cast("Any", parse_url(url.current())).get("ssl_password")
        try:
            return super()._connection_arguments()
        except (OSError, ValueError) as error:
            raise UnusableServer(f"{url.variable}: {url.problem() or 'a certificate changed meanwhile'}") from error
        finally:
            tls.password = None


class _UnixConnection(UnixDomainSocketConnection):
    async def _connect(self) -> None:
        # redis-py would do its handshake here, and then once more, and would hide why a login is refused.
        self._reader, self._writer = await asyncio.open_unix_connection(path=self.path)


_KINDS: dict[Any, Any] = {SSLConnection: _TlsConnection, UnixDomainSocketConnection: _UnixConnection}


def connection_pool(url: StoreUrl, **options: Any) -> ConnectionPool:
    """redis-py's pool for a URL; its object has no secret.

    :param options: of the pool and its connections.
    """
    given: dict[str, Any] = dict(parse_url(url.current()))
    for name in _SECRETS:
        given.pop(name, None)
    kind = given.pop("connection_class", Connection)
    return ConnectionPool(_KINDS.get(kind, kind), credential_provider=_Login(url), **given, **options)
