"""TLS on accepted connections.

The TLS of asyncio and of uvloop takes over what a caller has not received yet, and does not say how much that is. So
neither the time limit for sending nor the size limit for responses would hold. Nor would the time limit for heads hold
for handshakes. Here a connection exists from its first packet on, with all its limits, and OpenSSL (`ssl.SSLObject`)
only encrypts what goes through.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from time import time
from typing import Any, Final

import structlog

from bcs.config.files import read_regular_file
from bcs.config.settings import Settings
from bcs.errors import os_reason
from bcs.http.problems import Problem
from bcs.http.reloaded import FileUnusable, Reloaded

log = structlog.stdlib.get_logger("bcs.http", actor="http")

CERTIFICATE_NAMES: Final = "certificate_names"
"""The extra information of a connection: the names in the caller's certificate."""

_CERTIFICATE, _KEY, _CLIENT_CA = "BCS_HTTP_TLS_CERTFILE", "BCS_HTTP_TLS_KEYFILE", "BCS_HTTP_TLS_CLIENT_CAFILE"
_READ_BYTES = 256 * 1024
_LAST_SHARE = 0.1
_PLAIN_HTTP = "HTTP_REQUEST"
_SUBJECT_NAMES = ("URI", "DNS")


class TlsTransport(asyncio.Protocol, asyncio.Transport):
    """Stands between the transport of a socket and a protocol: the protocol of the one, the transport of the other.

    :param protocol: gets the decrypted bytes.
    :param context: of the server.
    """

    def __init__(self, protocol: asyncio.Protocol, context: ssl.SSLContext) -> None:
        super().__init__()
        self._protocol = protocol
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._context = context
        self._tls: Any = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._wire: Any = None
        self._secure = False
        self._closing = False
        self._names: tuple[str, ...] = ()

    # The protocol of the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake. The protocol waits for its first request from now on."""
        self._wire = transport
        self._protocol.connection_made(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The socket is closed."""
        self._closing = True
        self._tls = None  # its memory would wait for the garbage collector
        self._protocol.connection_lost(exc)  # type: ignore[arg-type]

    def pause_writing(self) -> None:
        """The socket takes no more bytes."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The socket has taken all bytes."""
        self._protocol.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Go on with the handshake, or decrypt."""
        self._incoming.write(data)
        try:
            if not self._secure:
                self._tls.do_handshake()
                self._secure = True
                certificate = self._tls.getpeercert()
                if self._tls.session_reused and _has_expired(certificate):
                    self._refuse("certificate has expired")
                    return
                self._names = _names_in(certificate)
            while not self._closing:
                decrypted = self._tls.read(_READ_BYTES)
                if not decrypted:
                    break  # the caller will send nothing more
                self._protocol.data_received(decrypted)
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            self._flush()  # the alert, which tells the caller what is wrong
            self._refuse(_reason(error), _without_tls() if error.reason == _PLAIN_HTTP else b"")
            return
        self.close()

    def eof_received(self) -> bool:
        """The caller has closed its side, and gets no answer any more, as without TLS."""
        return False

    # The transport of the protocol.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if self._closing or not self._secure:
            return
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        self._flush()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Encrypt and send."""
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Close once all bytes are sent, with TLS's own farewell before."""
        if self._closing:
            return
        if self._secure:
            with suppress(ssl.SSLError):  # the caller's farewell has not come; nobody waits for it
                self._tls.unwrap()
            self._flush()
        self._closing = True
        self._wire.close()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._wire.abort()

    def is_closing(self) -> bool:
        """See `BaseTransport`."""
        return self._closing or self._wire.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `BaseTransport`; also `CERTIFICATE_NAMES`."""
        if name == CERTIFICATE_NAMES:
            return self._names
        if name == "ssl_object":
            return self._tls
        if name == "sslcontext":
            return self._context
        return self._wire.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See `BaseTransport`."""
        self._protocol = protocol  # type: ignore[assignment]

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See `BaseTransport`."""
        return self._protocol

    def is_reading(self) -> bool:
        """See `ReadTransport`."""
        return self._wire.is_reading()  # type: ignore[no-any-return]

    def pause_reading(self) -> None:
        """Read no more from the socket."""
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._wire.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `WriteTransport`: the limits are those of the socket, since nothing else is buffered."""
        self._wire.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """The encrypted bytes that the socket has not taken."""
        return self._wire.get_write_buffer_size()  # type: ignore[no-any-return]

    def _flush(self) -> None:
        if self._outgoing.pending and not self._wire.is_closing():
            self._wire.write(self._outgoing.read())

    def _refuse(self, reason: str, answer: bytes = b"") -> None:
        log.info("tls_refused", reason=reason, address=self._peer(), summed_by=("reason",))
        self._closing = True
        if answer:
            self._wire.write(answer)
        self._wire.close()

    def _peer(self) -> str | None:
        name = self._wire.get_extra_info("peername")
        return name[0] if isinstance(name, tuple) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """What new connections are secured with.

    :param begins_at: when the certificate became valid, in seconds since 1970.
    :param ends_at: when the certificate expires, in seconds since 1970; infinite where that is not known.
    """

    context: ssl.SSLContext
    begins_at: float
    ends_at: float


def tls_of(settings: Settings) -> Reloaded[ServerTls] | None:
    """The TLS that the settings name, for new connections; None without TLS.

    :raises InvalidSettings: a file can't be used.
    """
    certificate = settings.http_tls_certfile
    if certificate is None:
        return None
    paths = [certificate, settings.http_tls_keyfile, settings.http_tls_client_cafile]
    return Reloaded(
        _CERTIFICATE, [path for path in paths if path], lambda: _tls(settings, certificate), _expiry_problem
    )


def _tls(settings: Settings, certificate: Path) -> ServerTls:
    context = _context(settings, certificate)
    begins_at = ends_at = inf
    try:
        # Python has no public function for this; its own tests use this one.
        decoded: dict[str, str] = ssl._ssl._test_decode_cert(certificate)  # type: ignore[attr-defined]
        begins_at, ends_at = (float(ssl.cert_time_to_seconds(decoded[name])) for name in ("notBefore", "notAfter"))
    except (ssl.SSLError, ValueError, LookupError):
        pass  # OpenSSL uses the certificate all the same
    return ServerTls(context=context, begins_at=begins_at, ends_at=ends_at)


def _expiry_problem(tls: ServerTls) -> str:
    """Says that the certificate has expired, or is about to: whatever renews it has failed."""
    if tls.ends_at == inf:
        return ""
    at, now = datetime.fromtimestamp(tls.ends_at, UTC).isoformat(), time()
    if now >= tls.ends_at:
        return f"the certificate expired at {at}: callers refuse the connection"
    # Certificates live for a day or for a year, and are renewed long before this share of their time.
    if now >= tls.ends_at - _LAST_SHARE * (tls.ends_at - tls.begins_at):
        return f"the certificate expires at {at}, and was not renewed yet"
    return ""


def _context(settings: Settings, certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    key, password = settings.http_tls_keyfile, settings.http_tls_key_password
    for variable, path in ((_CERTIFICATE, certificate), (_KEY, key), (_CLIENT_CA, settings.http_tls_client_cafile)):
        _ensure_readable(variable, path)
    try:
        # Without a function, OpenSSL would ask for the password at the terminal.
        context.load_cert_chain(certificate, key, lambda: password.get_secret_value() if password else "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise FileUnusable(f"the certificate and its key can't be used: {_reason(error)}") from None
    if settings.http_tls_client_cafile is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # OpenSSL does not check the certificate of a resumed session again. TLS 1.2 has sessions without tickets, too;
        # for these, the expiry is checked at the handshake.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_verify_locations(settings.http_tls_client_cafile)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise FileUnusable(f"the certificates in {_CLIENT_CA} can't be used: {_reason(error)}") from None
    return context


def _without_tls() -> bytes:
    correlation_id = secrets.token_hex(16)
    problem = Problem("tls-required", "this port speaks HTTP over TLS only: use https")
    response = problem.response(correlation_id, 0)
    response.headers["X-Correlation-ID"] = correlation_id
    return response.encode(keep_alive=False)


def _ensure_readable(variable: str, path: Path | None) -> None:
    try:
        if path is not None:
            read_regular_file(path, 1)
    except OSError as error:
        raise FileUnusable(f"{path} ({variable}) can't be read: {os_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Why OpenSSL refuses; the text of a `ValueError` could repeat the file."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or "unreadable").replace("_", " ").lower()
    return os_reason(error) if isinstance(error, OSError) else "not a certificate"


def _has_expired(certificate: Any) -> bool:
    return bool(certificate) and ssl.cert_time_to_seconds(certificate["notAfter"]) < time()


def _names_in(certificate: Any) -> tuple[str, ...]:
    """The names in a certificate: URIs and host names of the subject, or else its common names.

    An authority that checks URIs and host names need not check common names (RFC 6125, 6.4.4).
    """
    if not certificate:
        return ()
    alternatives = certificate.get("subjectAltName", ())
    names = [value for kind in _SUBJECT_NAMES for of_kind, value in alternatives if of_kind == kind]
    common = (value for part in certificate.get("subject", ()) for key, value in part if key == "commonName")
    return tuple(names or common)
