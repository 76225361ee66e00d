"""How BCS proves to Kafka who it is, and how it knows the brokers: the settings for TLS and SASL, and their files.

The files are read again for every new connection, so a certificate can be replaced without a restart.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from bcs.config.files import read_regular_file
from bcs.config.secrets import Secret
from bcs.errors import os_reason

_PREFIX = "BCS_KAFKA_"
_PASSWORD_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_MOST_TOKEN_BYTES = 65_536
# RFC 6750; anything else would break the message in which the token is sent.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class KafkaFileUnusable(ValueError):
    """A file with a certificate, a key or a token can't be used.

    :param variable: the setting that names the file, without its prefix.
    :param problem: why, in a few words, without any of its content.
    """

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(f"{_PREFIX}{variable} {problem}")
        self.variable = variable
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSecurity:
    """The settings `BCS_KAFKA_SECURITY_PROTOCOL`, `BCS_KAFKA_SASL_…`, `BCS_KAFKA_SSL_…` and `BCS_KAFKA_OAUTH_…`."""

    security_protocol: str
    sasl_mechanism: str | None
    sasl_username: str | None
    sasl_password: Secret | None
    ssl_cafile: Path | None
    ssl_certfile: Path | None
    ssl_keyfile: Path | None
    ssl_key_password: Secret | None
    ssl_check_hostname: bool
    oauth_token_file: Path | None
    oauth_token_url: str | None
    oauth_client_id: str | None
    oauth_client_secret: Secret | None
    oauth_scope: str | None
    oauth_cafile: Path | None

    @property
    def uses_tls(self) -> bool:
        """True if connections are encrypted."""
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        """True if BCS logs in."""
        return self.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    def problems(self) -> list[tuple[str, str]]:
        """What contradicts itself, is missing or names an unusable file: each variable, with the reason."""
        problems = [*self._contradictions(), *self._missing()]
        if not problems:
            problems = _unusable(self.ssl_context) if self.uses_tls else []
            problems += _unusable(self.oauth_ssl_context) if self.oauth_token_url else []
            problems += _unusable(partial(read_token, self.oauth_token_file)) if self.oauth_token_file else []
        return [(f"{_PREFIX}{name}", problem) for name, problem in problems]

    def ssl_context(self) -> ssl.SSLContext:
        """A context for connections to brokers, from the files as they are now.

        :raises KafkaFileUnusable: a file can't be used.
        """
        context = _trusting(self.ssl_cafile, "SSL_CAFILE")
        context.check_hostname = self.ssl_check_hostname
        if self.ssl_certfile is not None:
            self._load_certificate(context, self.ssl_certfile)
        return context

    def oauth_ssl_context(self) -> ssl.SSLContext:
        """A context for connections to the token endpoint.

        :raises KafkaFileUnusable: the file of the CA can't be used.
        """
        return _trusting(self.oauth_cafile, "OAUTH_CAFILE")

    def _load_certificate(self, context: ssl.SSLContext, certificate: Path) -> None:
        for path, name in ((certificate, "SSL_CERTFILE"), (self.ssl_keyfile, "SSL_KEYFILE")):
            if path is not None:
                _ensure_readable(path, name)
        password = self.ssl_key_password
        try:
            # Without a function, OpenSSL would ask for the password of an encrypted key at the terminal.
            context.load_cert_chain(
                certificate, self.ssl_keyfile, lambda: password.get_secret_value() if password else ""
            )
        except OSError as error:  # ssl.SSLError is one
            raise self._certificate_problem(certificate, error) from error

    def _certificate_problem(self, certificate: Path, error: OSError) -> KafkaFileUnusable:
        key = "SSL_KEYFILE" if self.ssl_keyfile else "SSL_CERTFILE"
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            return KafkaFileUnusable(key, f"has the key of another certificate than that of {_PREFIX}SSL_CERTFILE")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
        except OSError:
            return KafkaFileUnusable("SSL_CERTFILE", "has no certificate in PEM format")
        if self.ssl_keyfile is None:
            more = f"; {_PREFIX}SSL_KEYFILE is not set" if self.ssl_key_password is None else ""
            return KafkaFileUnusable(key, f"has no private key in PEM format that can be read{more}")
        fits = "does not fit" if self.ssl_key_password else "is not set"
        return KafkaFileUnusable(
            key, f"has no private key in PEM format, or it is encrypted and {_PREFIX}SSL_KEY_PASSWORD {fits}"
        )

    def _contradictions(self) -> list[tuple[str, str]]:
        protocol = f"has no effect with {_PREFIX}SECURITY_PROTOCOL={self.security_protocol}"
        problems = []
        if not self.uses_tls:
            problems += _set({"SSL_CAFILE": self.ssl_cafile, "SSL_CERTFILE": self.ssl_certfile}, f"{protocol}: {_TLS}")
            problems += _set({"SSL_KEYFILE": self.ssl_keyfile}, f"{protocol}: {_TLS}")
            problems += _set({"SSL_KEY_PASSWORD": self.ssl_key_password}, f"{protocol}: {_TLS}")
        login = {"SASL_USERNAME": self.sasl_username, "SASL_PASSWORD": self.sasl_password}
        if not self.uses_sasl:
            everything = {"SASL_MECHANISM": self.sasl_mechanism, **login, **self._of_tokens}
            return problems + _set(everything, f"{protocol}: {_SASL}")
        if self.sasl_mechanism == "OAUTHBEARER":
            problems += _set(login, f"has no effect with {_PREFIX}SASL_MECHANISM=OAUTHBEARER")
            if self.oauth_token_file is not None:
                others = {name: value for name, value in self._of_tokens.items() if name != "OAUTH_TOKEN_FILE"}
                problems += _set(others, f"is set, and {_PREFIX}OAUTH_TOKEN_FILE as well; only one of both ways may be")
        elif self.sasl_mechanism is not None:
            problems += _set(
                self._of_tokens, f"has no effect with {_PREFIX}SASL_MECHANISM={self.sasl_mechanism}: needs OAUTHBEARER"
            )
        return problems

    def _missing(self) -> list[tuple[str, str]]:
        problems = []
        if self.ssl_certfile is None and self.uses_tls:
            problems += _set(
                {"SSL_KEYFILE": self.ssl_keyfile, "SSL_KEY_PASSWORD": self.ssl_key_password},
                f"is set without the certificate in {_PREFIX}SSL_CERTFILE",
            )
        if not self.uses_sasl:
            return problems
        if self.sasl_mechanism is None:
            needs = f"must be set with {_PREFIX}SECURITY_PROTOCOL={self.security_protocol}"
            return [*problems, ("SASL_MECHANISM", needs)]
        needs = f"must be set with {_PREFIX}SASL_MECHANISM={self.sasl_mechanism}"
        if self.sasl_mechanism in _PASSWORD_MECHANISMS:
            return problems + _unset({"SASL_USERNAME": self.sasl_username, "SASL_PASSWORD": self.sasl_password}, needs)
        if self.oauth_token_file is not None:
            return problems
        if self.oauth_token_url is None:
            return [*problems, ("OAUTH_TOKEN_FILE", f"{needs}, or {_PREFIX}OAUTH_TOKEN_URL")]
        client = {"OAUTH_CLIENT_ID": self.oauth_client_id, "OAUTH_CLIENT_SECRET": self.oauth_client_secret}
        problems += _unset(client, f"must be set with {_PREFIX}OAUTH_TOKEN_URL")
        if url_problem := _token_url_problem(self.oauth_token_url):
            problems.append(("OAUTH_TOKEN_URL", url_problem))
        return problems

    @property
    def _of_tokens(self) -> dict[str, object]:
        return {
            "OAUTH_TOKEN_FILE": self.oauth_token_file,
            "OAUTH_TOKEN_URL": self.oauth_token_url,
            "OAUTH_CLIENT_ID": self.oauth_client_id,
            "OAUTH_CLIENT_SECRET": self.oauth_client_secret,
            "OAUTH_SCOPE": self.oauth_scope,
            "OAUTH_CAFILE": self.oauth_cafile,
        }


_TLS = "needs SSL or SASL_SSL"
_SASL = "needs SASL_SSL or SASL_PLAINTEXT"


def read_token(path: Path) -> str:
    """The token in a file.

    :raises KafkaFileUnusable: the file has no token.
    """
    try:
        content = read_regular_file(path, _MOST_TOKEN_BYTES + 1)
    except OSError as error:
        raise KafkaFileUnusable("OAUTH_TOKEN_FILE", f"can't be read: {os_reason(error)}") from error
    token = content.decode(errors="replace").strip()
    if len(content) > _MOST_TOKEN_BYTES or not is_token(token):
        raise KafkaFileUnusable("OAUTH_TOKEN_FILE", "has no token, or more than a token")
    return token


def is_token(text: str) -> bool:
    """True if a text has the form of a bearer token."""
    return _TOKEN.fullmatch(text) is not None


def _set(values: Mapping[str, object], problem: str) -> list[tuple[str, str]]:
    return [(name, problem) for name, value in values.items() if value is not None]


def _unset(values: Mapping[str, object], problem: str) -> list[tuple[str, str]]:
    return [(name, problem) for name, value in values.items() if value is None]


def _unusable(use: Callable[[], object]) -> list[tuple[str, str]]:
    try:
        use()
    except KafkaFileUnusable as unusable:
        return [(unusable.variable, unusable.problem)]
    return []


def _trusting(ca: Path | None, name: str) -> ssl.SSLContext:
    if ca is None:
        return ssl.create_default_context()
    _ensure_readable(ca, name)
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise KafkaFileUnusable(name, "has no certificate in PEM format") from error


def _ensure_readable(path: Path, name: str) -> None:
    try:
        read_regular_file(path, 1)
    except OSError as error:
        raise KafkaFileUnusable(name, f"can't be read: {os_reason(error)}") from error


def _token_url_problem(url: str) -> str | None:
    # The text must not repeat the URL, which may have a secret in it.
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if not url.isprintable() or " " in url or parts.scheme not in ("https", "http") or not host:
        return "must begin with https:// and a host"
    if "@" in parts.netloc:
        return f"must have no login; it belongs into {_PREFIX}OAUTH_CLIENT_ID and {_PREFIX}OAUTH_CLIENT_SECRET"
    if parts.scheme == "http" and host not in _LOOPBACK:
        return "must be https, because the client's secret goes there; http is for this machine alone"
    return None
