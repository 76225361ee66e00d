"""Accepts connections from a listening socket that outlives the acceptor."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from math import inf

import anyio
import structlog

from bcs.errors import os_reason
from bcs.http.addresses import network_of
from bcs.http.callers import MOST_CROWDED, MOST_OPENING_ABOVE_SHARE, Callers, Crowded, Share
from bcs.http.descriptors import USED_UP, Reserve

log = structlog.stdlib.get_logger("bcs.http", actor="http")

# How many connections are accepted in one turn of the event loop at most, so that open connections get turns, too.
_AT_A_TIME = 64
# The shortest time between two equal warnings in the log.
_WARNING_SECONDS = 10.0
# The errors of a broken listening socket. All other errors are temporary, such as a lack of memory, or a network error
# that accept(2) reports; connections wait in the backlog meanwhile.
_BROKEN = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.EFAULT})
_SO_ATTACH_FILTER = 26
# Classic BPF (linux/filter.h): code, two jumps, operand. A socket's filter gets the packet from its TCP header on.
_PASS_ALL_BUT_SYN = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 0x02),  # test for SYN
    (0x06, 0, 0, 0),  # with SYN: drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # without SYN: pass the packet
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection that was accepted.

    :param network: the network of the caller's address; see `network_of`.
    :param crowded: why there is no room for the connection; None if there is room.
    """

    network: str
    crowded: Crowded | None


class Acceptor:
    """Accepts connections for a server, many in one turn of the event loop.

    The servers of uvloop accept one connection in a turn, as libuv does since 1.45 (libuv #3696). A turn is long if
    hundreds of connections are busy. New connections, including liveness probes, would wait for many seconds.

    If the number of connections is at its limit, or no file can be opened, each new connection replaces that of an idle
    or slow caller. If there is no such caller, a few more connections are accepted, so that probes are answered. The
    same holds for the connections of one address; further connections of the address are closed at once.

    :param listener: the listening socket. `run` does not close it, so other connections wait in the backlog.
    :param make_protocol: makes the protocol of a connection.
    :param callers: all open connections.
    :param pause_seconds: the pause after a temporary error.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[Accepted], asyncio.BaseProtocol],
        callers: Callers,
        *,
        pause_seconds: float = 0.05,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._callers = callers
        self._pause_seconds = pause_seconds
        self._reserve = Reserve(MOST_CROWDED)
        self._warned_at = -inf

    async def run(self) -> None:
        """Accept until the task is cancelled. Connections that were accepted before are still served."""
        async with anyio.create_task_group() as group:
            while True:
                await anyio.wait_readable(self._listener)
                try:
                    taken = self._take(limited=True)
                except OSError as error:
                    if error.errno in _BROKEN:
                        raise
                    self._warn(os_reason(error))
                    taken = []
                for connection, accepted in taken:
                    if accepted:
                        group.start_soon(self._serve, connection, accepted)
                    else:
                        connection.close()
                if not taken:
                    await anyio.sleep(self._pause_seconds)

    def close(self) -> None:
        """Close the reserve of descriptors."""
        self._reserve.close()

    def reject_new_connections(self) -> None:
        """Reject new connections. Connections that have begun can still be accepted.

        Closing a listening socket resets the connections in its backlog and those in the middle of a handshake. So the
        kernel is told first to drop the first packet of new connections (SO_ATTACH_FILTER on Linux). The callers send
        this packet again a second later, and are refused. On other systems, some connections may be reset.
        """
        if sys.platform == "linux":
            instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in _PASS_ALL_BUT_SYN)
            buffer = ctypes.create_string_buffer(instructions)
            program = struct.pack("HP", len(_PASS_ALL_BUT_SYN), ctypes.addressof(buffer))
            with suppress(OSError):  # a sandbox may not support the option
                self._listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    async def accept_remaining_and_close(self) -> None:
        """Accept all connections in the backlog, and close the listening socket, which refuses later connections."""
        async with anyio.create_task_group() as group:
            with suppress(OSError), closing(self._listener):  # there may be no room for the last connections
                while taken := self._take(limited=False):
                    for connection, accepted in taken:
                        if accepted:
                            group.start_soon(self._serve, connection, accepted)

    def _take(self, *, limited: bool) -> list[tuple[socket.socket, Accepted | None]]:
        """Accept some connections.

        :param limited: True if the number of connections has a limit.
        :returns: each connection; with None if it must be closed at once. The list is empty if no connection waits, or
            if none can be accepted now.
        :raises OSError: no connection could be accepted.
        """
        callers = self._callers
        self._reserve.refill()
        room = callers.room if limited else _AT_A_TIME
        more = callers.room_for_probes
        taken: list[tuple[socket.socket, Accepted | None]] = []
        while len(taken) < _AT_A_TIME:
            if room <= 0 and more <= 0 and not callers.any_slow():
                self._warn("too many connections")
                break
            try:
                connection, network, out_of_files = self._accept()
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue  # the caller has left
            except OSError:
                if taken:
                    break  # the next call gets the error again
                raise
            share = callers.share_of(network) if limited else Share.FREE
            if share is Share.REFUSED:
                taken.append((connection, None))
                continue
            connection.setblocking(False)
            room += share is Share.REPLACES
            crowded = Crowded.ADDRESS if share is Share.USED_UP else None
            # An address that has used up its share must not take the place of others.
            if (room <= 0 or out_of_files) and (crowded or not callers.make_room()):
                crowded = Crowded.ALL
                more -= 1
            room -= 1
            opening = callers.opening(network)
            taken.append((connection, Accepted(network, crowded)))
            if share is Share.USED_UP and opening >= MOST_OPENING_ABOVE_SHARE:
                break
        return taken

    def _accept(self) -> tuple[socket.socket, str, bool]:
        """Accept a connection.

        :returns: the socket, the network of the caller, and True if this needed a descriptor of the reserve.
        """
        try:
            connection, (address, *_) = self._listener.accept()
        except OSError as error:
            if error.errno not in USED_UP:
                raise
            self._warn(os_reason(error))
            if not self._reserve.give_up():
                self._callers.make_room()  # for the next attempt
                raise
            connection, (address, *_) = self._listener.accept()
            return connection, network_of(address), True
        return connection, network_of(address), False

    def _warn(self, problem: str) -> None:
        now = anyio.current_time()
        if now >= self._warned_at + _WARNING_SECONDS:
            self._warned_at = now
            log.warning("connections_scarce", problem=problem, connections=len(self._callers.connected))

    async def _serve(self, connection: socket.socket, accepted: Accepted) -> None:
        # This takes one turn of the event loop. A cancellation would close the connection.
        with anyio.CancelScope(shield=True), suppress(OSError):  # the caller may have left
            loop = asyncio.get_running_loop()
            try:
                await loop.connect_accepted_socket(lambda: self._make_protocol(accepted), connection)
            finally:
                self._callers.opened(accepted.network)
