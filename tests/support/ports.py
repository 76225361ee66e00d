"""Ports for services that a test starts, and perhaps stops and starts again."""

from __future__ import annotations

import socket

from bcs.devtools.servers.embedded import HOST

_held: list[socket.socket] = []


def held_port() -> int:
    """A TCP port of the loopback interface that nobody else gets before this process ends.

    A socket that never listens holds it: a service can bind the port all the same, but the kernel gives it neither to
    another server nor to an outgoing connection. A port that was only free a moment ago was taken now and then.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, 0))
    _held.append(held)
    return int(held.getsockname()[1])
