"""The one place that says how a client of Kafka connects: addresses, TLS and login, from the settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcs.config.kafka_security import KafkaFileUnusable, KafkaSecurity
from bcs.config.settings import Settings
from bcs.kafka.connecting import CredentialsUnusable

if TYPE_CHECKING:
    from ssl import SSLContext

    from bcs.kafka.oauth import TokenProvider


@dataclass(frozen=True, slots=True)
class KafkaClients:
    """The connection options for all clients of Kafka of a process. The clients share the token.

    :param tokens: None where the login is not by token.
    """

    servers: str
    security: KafkaSecurity
    tokens: TokenProvider | None

    @classmethod
    def of(cls, settings: Settings) -> KafkaClients:
        """The clients that these settings describe."""
        security = settings.kafka_security
        tokens = None
        if security.sasl_mechanism == "OAUTHBEARER":
            from bcs.kafka.oauth import token_provider

            tokens = token_provider(security, settings.kafka_request_timeout_seconds / 2)
        return cls(settings.kafka_bootstrap_servers, security, tokens)

    def options(self) -> dict[str, Any]:
        """The options for one client of aiokafka. Its connections read files and passwords when they are made."""
        security = self.security
        return {
            "bootstrap_servers": self.servers,
            "security_protocol": security.security_protocol,
            "ssl_context": FreshConnections(security, self.tokens),
            "sasl_mechanism": security.sasl_mechanism or "PLAIN",
            "sasl_plain_username": security.sasl_username,
            "sasl_plain_password": "",  # each connection gets the password of its time
            "sasl_oauth_token_provider": self.tokens,
        }


@dataclass(slots=True)
class FreshConnections:
    """Gives the connections of one client what they need, from the files as they are then.

    :param failures: see `ConnectionSource`.
    """

    security: KafkaSecurity
    tokens: TokenProvider | None
    failures: dict[tuple[str, int], BaseException] = field(default_factory=dict)
    _made_of: tuple[object, ...] = field(default=(), repr=False)  # has a password
    _context: SSLContext | None = None

    def fresh(self) -> Mapping[str, Any]:
        """See `ConnectionSource`."""
        try:
            options: dict[str, Any] = {"ssl_context": self._tls() if self.security.uses_tls else None}
        except KafkaFileUnusable as unusable:
            raise CredentialsUnusable(str(unusable)) from unusable
        if self.security.sasl_password is not None:
            options["sasl_plain_password"] = self.security.sasl_password.get_secret_value()
        return options

    def rejected(self) -> None:
        """See `ConnectionSource`."""
        if self.tokens is not None:
            self.tokens.rejected()

    def _tls(self) -> SSLContext:
        # While the brokers are away, clients try ten times a second, and the CAs of a system take 20 ms to load.
        security = self.security
        files = (security.ssl_cafile, security.ssl_certfile, security.ssl_keyfile)
        password = security.ssl_key_password
        made_of = (*(_stamp(path) for path in files), password.get_secret_value() if password else None)
        if self._context is None or made_of != self._made_of:
            self._context = security.ssl_context()
            self._made_of = made_of
        return self._context


def _stamp(path: Path | None) -> tuple[int, ...] | None:
    """Changes whenever a file is replaced or written."""
    if path is None:
        return None
    try:
        found = os.stat(path)  # noqa: PTH116 (follows the links of a mounted secret)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
