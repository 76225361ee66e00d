"""The one place that says how a client of Kafka connects: addresses, TLS and login, from the settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka.errors import SaslAuthenticationFailed

from bcs.config.files import file_version
from bcs.config.kafka_security import KafkaFileUnusable, KafkaSecurity
from bcs.config.settings import Settings
from bcs.kafka.connecting import Address, CredentialsUnusable

if TYPE_CHECKING:
    from ssl import SSLContext

    from bcs.kafka.oauth import TokenProvider

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class KafkaClients:
    """The connection options for all clients of Kafka of a process. The clients share the token.

    :param tokens: None where the login is not by token.
    :param refused: the logins that brokers have refused, of all clients.
    """

    servers: str
    security: KafkaSecurity
    tokens: TokenProvider | None
    refused: RefusedLogins = field(default_factory=lambda: RefusedLogins())

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


class RefusedLogins:
    """Lets a login that a broker has refused wait before it is tried again; a new password is tried at once.

    aiokafka's tasks try again ten times a second, each client for itself. That would lock the account where a broker
    counts refusals, and BCS could not log in even with the right password.

    :param clock: returns seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[Address, _Refusal] = {}

    def ensure_due(self, address: Address, password: str | None) -> None:
        """Fail while the login has to wait.

        :raises SaslAuthenticationFailed: it has; with the reason of the broker.
        """
        refusal = self._refused.get(address)
        if refusal and refusal.password == hash(password) and self._clock() < refusal.until:
            raise SaslAuthenticationFailed(*refusal.reason)

    def note(self, address: Address, password: str | None, error: SaslAuthenticationFailed) -> None:
        """Note that a broker has refused a login. The pause grows with each refusal.

        :param password: None for a login by token, which locks no account.
        """
        before = self._refused.get(address)
        same = before is not None and before.password == hash(password)
        longest = _LONGEST_PAUSE_SECONDS if password is not None else _FIRST_PAUSE_SECONDS
        pause = min(2 * before.pause_seconds, longest) if before and same else _FIRST_PAUSE_SECONDS
        self._refused[address] = _Refusal(hash(password), error.args, pause, self._clock() + pause)

    def forget(self, address: Address) -> None:
        """Note that a broker has accepted a login."""
        self._refused.pop(address, None)


@dataclass(frozen=True, slots=True)
class _Refusal:
    password: int
    reason: tuple[object, ...]
    pause_seconds: float
    until: float


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
        self.refused.note(address, password, error)
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
