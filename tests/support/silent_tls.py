"""A server with TLS that never answers a farewell (close_notify), in front of a real server without TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from bcs.devtools.servers.embedded import HOST
from tests.support.certificates import KeyPair

_CHUNK_BYTES = 65536


class SilentTls:
    """Decrypts each connection and forwards it. Runs in threads of its own, so that event loops can end beside it.

    A farewell is read, and nothing else happens: the connection stays open until the client closes the socket.

    :param target_port: of the server behind it; 0 for one that never says anything.
    """

    def __init__(self, certificate: KeyPair, target_port: int = 0) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.certificate, certificate.key)
        self._target_port = target_port
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """``host:port`` for clients."""
        return f"{HOST}:{self.port}"

    @property
    def connections_open(self) -> int:
        """How many sockets clients have not closed."""
        return len(self._open)

    def to(self, target_port: int) -> Self:
        """Forward to this server."""
        self._target_port = target_port
        return self

    def __enter__(self) -> Self:
        _in_thread(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections."""
        with self._lock:
            for client in self._open:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                with self._lock:
                    self._open.add(client)
                    self.accepted += 1
                _in_thread(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        # The file descriptor is shared with the socket of TLS, so that the socket can be read after the farewell.
        with suppress(OSError), self._context.wrap_socket(client.dup(), server_side=True) as tls:
            if self._target_port:
                with socket.create_connection((HOST, self._target_port)) as server:
                    _in_thread(_copy, server, tls)
                    _copy(tls, server)
                    with suppress(OSError):
                        server.shutdown(socket.SHUT_RDWR)  # its close alone would not reach the thread that reads it
            while client.recv(_CHUNK_BYTES):  # until the client closes the socket
                pass
        with self._lock:
            self._open.discard(client)
        client.close()


def _copy(source: Any, target: Any) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(data)


def _in_thread(work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()
