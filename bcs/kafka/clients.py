"""The one place that says how a client of Kafka connects: addresses, TLS and login, from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka.errors import SaslAuthenticationFailed

from bcs.config.files import file_version
from bcs.config.kafka_security import KafkaFileUnusable, KafkaSecurity
from bcs.config.refused_logins import RefusedLogins
from bcs.config.settings import Settings
from bcs.kafka.connecting import Address, CredentialsUnusable

if TYPE_CHECKING:
    from ssl import SSLContext

    from bcs.kafka.oauth import TokenProvider


@dataclass(frozen=True, slots=True)
class KafkaClients:
    """The connection options for all clients of Kafka of a process. The clients share the token.

    :param tokens: None where the login is not by token.
    :param refused: the logins that brokers have refused, of all clients.
    """

    servers: str
    security: KafkaSecurity
    tokens: TokenProvider | None
    refused: RefusedLogins = field(default_factory=RefusedLogins)

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
            "ssl_context": FreshConnections(security, self.tokens, self.refused),
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
    refused: RefusedLogins = field(default_factory=RefusedLogins)
    failures: dict[Address, BaseException] = field(default_factory=dict)
    _made_of: tuple[object, ...] = field(default=(), init=False)
    _context: SSLContext | None = field(default=None, init=False)

    def fresh(self) -> Mapping[str, Any]:
        """See `ConnectionSource`."""
        try:
            options: dict[str, Any] = {"ssl_context": self._tls() if self.security.uses_tls else None}
        except KafkaFileUnusable as unusable:
            raise CredentialsUnusable(str(unusable)) from unusable
        if self.security.sasl_password is not None:
            options["sasl_plain_password"] = self.security.sasl_password.get_secret_value()
        return options

    def ensure_login_due(self, address: Address, password: str | None) -> None:
        """See `ConnectionSource`."""
        self.refused.ensure_due(address, password)

    def accepted(self, address: Address) -> None:
        """See `ConnectionSource`."""
        self.refused.forget(address)

    def rejected(self, address: Address, password: str | None, error: SaslAuthenticationFailed) -> None:
        """See `ConnectionSource`."""
        # A login by token has no password, and locks no account.
        self.refused.note(address, password, error, may_lock=password is not None)
        if self.tokens is not None:
            self.tokens.rejected()

    def _tls(self) -> SSLContext:
        # While the brokers are away, clients try ten times a second, and the CAs of a system take 20 ms to load.
        security = self.security
        files = (security.ssl_cafile, security.ssl_certfile, security.ssl_keyfile)
        made_of = tuple(_version(path) for path in files)
        if self._context is None or made_of != self._made_of:
            self._context = security.ssl_context()
            self._made_of = made_of
        return self._context


def _version(path: Path | None) -> tuple[int, ...] | None:
    try:
        return None if path is None else file_version(path)
    except OSError:  # its reading says what is wrong
        return ()
