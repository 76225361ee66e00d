"""Takes connections from a listening socket that outlives whoever takes them."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field

import anyio
import structlog

log = structlog.stdlib.get_logger("bcs.http", actor="http")

# So many a turn of the event loop, for those who are connected already to have theirs.
_AT_A_TIME = 64
# What is wrong with the listening socket itself. All else passes: file descriptors or memory are used up, or a network
# that failed is told of here (accept(2)). Until then connections wait in the backlog.
_BROKEN = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.EFAULT})
_SO_ATTACH_FILTER = 26
# Classic BPF (linux/filter.h): code, two jumps, operand. A socket's filter sees the packet from its TCP header on.
_PASS_ALL_BUT_SYN = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # pass all of it
)


@dataclass(frozen=True, slots=True)
class Acceptor:
    """Hands connections to a server, as many in a turn of the event loop as there are.

    uvloop's own servers accept one in a turn, as libuv does since 1.45 (libuv #3696). With hundreds of busy connections
    a turn is long: new ones, and with them the probes for signs of life, would wait for many seconds.

    :param listener: is not closed by `run`: what it does not take waits in the backlog.
    :param make_protocol: makes what serves a connection.
    :param pause_seconds: the wait after what passes, as when no more files can be opened.
    """

    listener: socket.socket
    make_protocol: Callable[[], asyncio.BaseProtocol]
    pause_seconds: float = field(default=0.5, kw_only=True)

    async def run(self) -> None:
        """Accept until cancelled; a connection that was taken by then is served all the same."""
        async with anyio.create_task_group() as group:
            while True:
                await anyio.wait_readable(self.listener)
                try:
                    taken = self._take(_AT_A_TIME)
                except OSError as error:
                    if error.errno in _BROKEN:
                        raise
                    log.warning("connections_not_accepted", error=error.strerror)
                    await anyio.sleep(self.pause_seconds)
                    continue
                for connection in taken:
                    group.start_soon(self._serve, connection)

    def drop_newcomers(self) -> None:
        """Let nobody knock any more, while those who have may still come in.

        To close a listening socket resets whoever is in its backlog or half way into it, and at any moment somebody is.
        So before that the kernel is told to drop their first packet (Linux's SO_ATTACH_FILTER): they send it again a
        second later, and are refused. Elsewhere some may be reset.
        """
        if sys.platform == "linux":
            instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in _PASS_ALL_BUT_SYN)
            buffer = ctypes.create_string_buffer(instructions)
            program = struct.pack("HP", len(_PASS_ALL_BUT_SYN), ctypes.addressof(buffer))
            with suppress(OSError):  # a sandbox may not know it
                self.listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    async def take_the_last(self) -> None:
        """Take what waits in the backlog, and close the listening socket: connections are refused from now on."""
        async with anyio.create_task_group() as group:
            with suppress(OSError), closing(self.listener):  # for the very last there may be no room
                while taken := self._take(_AT_A_TIME):
                    for connection in taken:
                        group.start_soon(self._serve, connection)

    def _take(self, limit: int) -> list[socket.socket]:
        taken: list[socket.socket] = []
        while len(taken) < limit:
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue  # it has gone meanwhile
            except OSError:
                if taken:
                    break  # is said again next time
                raise
            connection.setblocking(False)
            taken.append(connection)
        return taken

    async def _serve(self, connection: socket.socket) -> None:
        # One turn of the event loop; cancelled, it would close the connection.
        with anyio.CancelScope(shield=True), suppress(OSError):  # it has gone meanwhile
            await asyncio.get_running_loop().connect_accepted_socket(self.make_protocol, connection)
