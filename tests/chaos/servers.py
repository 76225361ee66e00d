"""Servers whose end is of no interest."""

from collections.abc import Iterator
from contextlib import contextmanager

from bcs.devtools.servers.embedded import EmbeddedServer


@contextmanager
def killed_at_the_end(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """A server that runs; nobody needs what it holds in the end, and an orderly stop of Tansu takes half a second."""
    with server:
        try:
            yield server
        finally:
            server.kill()
