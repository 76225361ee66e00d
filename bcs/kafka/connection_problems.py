"""Why a connection to a broker fails, in a few words with the setting that helps.

aiokafka's error often says only that the connection was closed: a broker closes it without a word if it is spoken to
in plain text instead of TLS, or without a login. So this module then asks the listener what it expects.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Sequence

import anyio
from aiokafka.errors import IllegalSaslStateError, SaslAuthenticationFailed

from bcs.config.kafka_security import KafkaSecurity
from bcs.errors import os_reason
from bcs.kafka.connecting import ConnectionSource, CredentialsUnusable

_CONNECT_SECONDS = 1.0
# A broker lets a login that fails wait: 0.4 s, unless it is told otherwise.
_ANSWER_SECONDS = 1.0
_REASON_SECONDS = 0.3
_MOST_BYTES = 100_000
_MOST_CHARACTERS = 200
_CLIENT = b"batch-conductor-service"
_API_VERSIONS, _SASL_HANDSHAKE = 18, 17
_UNSUPPORTED_MECHANISM, _NO_SASL_HERE = 33, 34
_PROTOCOL = "BCS_KAFKA_SECURITY_PROTOCOL"
_SILENT = "no answer in time; a process listens there, but is frozen or is not a Kafka broker"
_DROPPED = "a broker answers there, but too late, or it closes the connection; its log may have the reason"
_CLOSED = "the connection was lost; a process listens there, but is frozen, expects TLS, or is not a Kafka broker"

_FOR_ANOTHER_HOST = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_UNKNOWN_CA = (2, 18, 19, 20, 21)
_OWN_CERTIFICATE_REFUSED = {
    "CERTIFICATE_REQUIRED": "it asks for one",
    "CERTIFICATE_EXPIRED": "it has expired",
    "CERTIFICATE_REVOKED": "it was revoked",
    "CERTIFICATE_UNKNOWN": "it has expired, or is not from a CA that the broker trusts",
    "UNKNOWN_CA": "it is not from a CA that the broker trusts",
    "BAD_CERTIFICATE": "it is not valid, or missing",
    "UNSUPPORTED_CERTIFICATE": "it is not for clients",
}
"""The end of the name of a TLS alert to its meaning."""


def known_problem(error: BaseException, host: str, security: KafkaSecurity) -> str | None:
    """The problem that an error of a connection shows by itself; None where the listener must be asked.

    :param host: the host that was connected to.
    """
    if error.__cause__ is not None and not isinstance(error, CredentialsUnusable):
        error = error.__cause__  # aiokafka puts what has closed the connection there
    if isinstance(error, CredentialsUnusable):
        return str(error.args[0])
    if isinstance(error, SaslAuthenticationFailed):
        detail = _printable(" ".join(str(argument) for argument in error.args if argument))
        return f"the broker does not accept the login; check {_of_login(security)}" + (f": {detail}" if detail else "")
    if isinstance(error, IllegalSaslStateError):
        return _no_login_expected(security)
    if isinstance(error, ssl.SSLError):
        return _tls_problem(error, host, security)
    if isinstance(error, socket.gaierror):
        return "the host name is unknown"
    if isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionResetError | BrokenPipeError):
        return os_reason(error).lower() if error.errno else None
    return None


async def listener_problem(host: str, port: int, source: ConnectionSource | None) -> str:
    """Why a broker can't be used, found out by connections to its listener.

    :param source: None for a client without TLS and login.
    """
    try:
        with anyio.fail_after(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
        writer.transport.abort()
    except socket.gaierror:
        return "the host name is unknown"
    except TimeoutError:
        return "no answer in time"
    except OSError as error:
        return os_reason(error).lower()
    security = source.security if source else None
    try:
        if security is None or not security.uses_tls:
            return await _problem_without_tls(host, port, security)
        return await _problem_with_tls(host, port, security, source.fresh()["ssl_context"] if source else None)
    except TimeoutError:
        return _SILENT
    except (OSError, EOFError, CredentialsUnusable):
        return _CLOSED


async def _problem_without_tls(host: str, port: int, security: KafkaSecurity | None) -> str:
    if await _speaks_kafka(host, port, None):
        return await _login_problem(host, port, None, security) or _DROPPED
    if await _speaks_tls(host, port):
        protocol = "SASL_SSL" if security and security.uses_sasl else "SSL or SASL_SSL"
        return f"the broker expects TLS there: set {_PROTOCOL} to {protocol}"
    return _CLOSED


async def _problem_with_tls(host: str, port: int, security: KafkaSecurity, tls: ssl.SSLContext | None) -> str:
    if await _speaks_kafka(host, port, None):
        protocol = "SASL_PLAINTEXT" if security.uses_sasl else "PLAINTEXT or SASL_PLAINTEXT"
        return f"the broker speaks plain text there, not TLS: correct the port, or set {_PROTOCOL} to {protocol}"
    try:
        await _handshake(host, port, tls)
        if await _speaks_kafka(host, port, tls):
            return await _login_problem(host, port, tls, security) or _DROPPED
    except ssl.SSLError as error:
        return _tls_problem(error, host, security) or _CLOSED
    return _CLOSED


async def _login_problem(
    host: str, port: int, tls: ssl.SSLContext | None, security: KafkaSecurity | None
) -> str | None:
    """What is wrong about the login of a broker that answers; None where nothing is."""
    mechanism = (security.sasl_mechanism if security else None) or "NONE"
    asked = struct.pack(">h", len(mechanism)) + mechanism.encode()
    answer = await _ask(host, port, tls, (_API_VERSIONS, 0, b""), (_SASL_HANDSHAKE, 1, asked))
    code, offered = _offered(answer)
    if security is not None and security.uses_sasl:
        if code == _NO_SASL_HERE:
            return _no_login_expected(security)
        if code == _UNSUPPORTED_MECHANISM:
            return f"the broker offers {offered}, and not {mechanism}: change BCS_KAFKA_SASL_MECHANISM"
        return None
    if code in (0, _UNSUPPORTED_MECHANISM):
        protocol = "SASL_SSL" if tls else "SASL_PLAINTEXT"
        return (
            f"the broker expects a login: set {_PROTOCOL}={protocol}, and BCS_KAFKA_SASL_MECHANISM to one of {offered}"
        )
    return None


def _offered(answer: bytes) -> tuple[int, str]:
    """The error code and the mechanisms in an answer to a handshake."""
    try:
        code, count = struct.unpack_from(">hi", answer)
        names, at = [], 6
        for _ in range(min(count, 20)):
            (length,) = struct.unpack_from(">h", answer, at)
            names.append(answer[at + 2 : at + 2 + length].decode("ascii", "replace"))
            at += 2 + length
    except struct.error:
        return -1, ""
    return code, _printable(", ".join(sorted(names)))


def _printable(text: str) -> str:
    """A text of a broker in one line of limited length: anything can listen where a broker is expected."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:_MOST_CHARACTERS]


def _no_login_expected(security: KafkaSecurity) -> str:
    protocol = "SSL" if security.uses_tls else "PLAINTEXT"
    return f"the broker expects no login there: correct the port, or set {_PROTOCOL} to {protocol}"


def _of_login(security: KafkaSecurity) -> str:
    if security.oauth_token_file is not None:
        return "BCS_KAFKA_OAUTH_TOKEN_FILE"
    if security.sasl_mechanism == "OAUTHBEARER":
        return "BCS_KAFKA_OAUTH_CLIENT_ID and BCS_KAFKA_OAUTH_SCOPE"
    return "BCS_KAFKA_SASL_USERNAME and BCS_KAFKA_SASL_PASSWORD"


def _tls_problem(error: ssl.SSLError, host: str, security: KafkaSecurity) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _FOR_ANOTHER_HOST:
            return f"the broker's certificate is not for {host}: correct it, or set BCS_KAFKA_SSL_CHECK_HOSTNAME=false"
        if error.verify_code in _UNKNOWN_CA:
            return "the broker's certificate is not from a trusted CA: set BCS_KAFKA_SSL_CAFILE to the CA of the broker"
        if error.verify_code == _EXPIRED:
            return "a certificate of the broker has expired: renew it, or its CA in BCS_KAFKA_SSL_CAFILE"
        return f"the broker's certificate is not valid: {error.verify_message}"
    reason = getattr(error, "reason", None) or ""
    for alert, meaning in _OWN_CERTIFICATE_REFUSED.items():
        if "ALERT" in reason and reason.endswith(alert):
            if security.ssl_certfile is None:
                return "the broker asks for a client certificate: set BCS_KAFKA_SSL_CERTFILE and BCS_KAFKA_SSL_KEYFILE"
            return f"the broker does not accept the client certificate of BCS_KAFKA_SSL_CERTFILE: {meaning}"
    if "ALERT" in reason:
        asks = "; it may ask for a client certificate (BCS_KAFKA_SSL_CERTFILE)" if security.ssl_certfile is None else ""
        return f"the broker ends the TLS handshake: {reason.replace('_', ' ').lower()}{asks}"
    return None


async def _speaks_kafka(host: str, port: int, tls: ssl.SSLContext | None) -> bool:
    """True if a Kafka broker answers.

    :raises ssl.SSLError: the handshake failed.
    :raises TimeoutError: nothing answers.
    """
    try:
        return bool(await _ask(host, port, tls, (_API_VERSIONS, 0, b"")))
    except ssl.SSLError:
        raise
    except TimeoutError:
        raise
    except (OSError, EOFError):
        return False


async def _handshake(host: str, port: int, tls: ssl.SSLContext | None) -> None:
    """Wait if the broker ends the connection after the handshake, as it does where it wants another certificate.

    Nothing is sent: to a connection that the broker has closed, that would discard its reason.

    :raises ssl.SSLError: it does.
    """
    with anyio.move_on_after(_REASON_SECONDS):
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
        try:
            await reader.read(1)
        finally:
            writer.transport.abort()


async def _speaks_tls(host: str, port: int) -> bool:
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE  # nothing but the handshake is exchanged
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=anyone)
    except ssl.SSLError as error:
        return "ALERT" in (getattr(error, "reason", None) or "")
    except OSError:
        return False
    writer.transport.abort()
    return True


async def _ask(host: str, port: int, tls: ssl.SSLContext | None, *requests: tuple[int, int, bytes]) -> bytes:
    """The body of the answer to the last request; empty where the answer is not Kafka's.

    :param requests: for each request its API, version and body.
    :raises EOFError: the connection was closed.
    """
    with anyio.fail_after(_ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
        try:
            answer = b""
            for number, request in enumerate(requests):
                answer = await _answer(reader, writer, number, request)
            return answer
        finally:
            writer.transport.abort()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, request: tuple[int, int, bytes]
) -> bytes:
    api, version, body = request
    message = struct.pack(">hhih", api, version, number, len(_CLIENT)) + _CLIENT + body
    writer.write(struct.pack(">i", len(message)) + message)
    length, answered = struct.unpack(">ii", await reader.readexactly(8))
    if answered != number or not 4 < length < _MOST_BYTES:
        return b""
    return await reader.readexactly(length - 4)


def addresses_of(servers: Sequence[tuple[str, int]], source: ConnectionSource | None) -> list[tuple[str, int]]:
    """The addresses to report: the bootstrap servers, or the brokers behind them if only those failed."""
    failures = source.failures if source else {}
    behind = [address for address in failures if address not in servers]
    return behind if behind and not any(server in failures for server in servers) else list(servers)
