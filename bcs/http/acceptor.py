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
from math import inf

import anyio
import structlog

from bcs.http.callers import Callers
from bcs.http.descriptors import USED_UP, Reserve

log = structlog.stdlib.get_logger("bcs.http", actor="http")

# So many a turn of the event loop, for those who are connected already to have theirs.
_AT_A_TIME = 64
# So many connections beyond the most, and so many descriptors that are kept.
_MOST_CROWDED = 8
# Between two lines in the log that say the same.
_WARNING_SECONDS = 10.0
# What is wrong with the listening socket itself. All else passes: memory is used up, or a network that failed is told
# of here (accept(2)). Until then connections wait in the backlog.
_BROKEN = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.EFAULT})
_SO_ATTACH_FILTER = 26
# Classic BPF (linux/filter.h): code, two jumps, operand. A socket's filter sees the packet from its TCP header on.
_PASS_ALL_BUT_SYN = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # pass all of it
)


class Acceptor:
    """Hands connections to a server, as many in a turn of the event loop as there are.

    uvloop's own servers accept one in a turn, as libuv does since 1.45 (libuv #3696). With hundreds of busy connections
    a turn is long: new ones, and with them the probes for signs of life, would wait for many seconds.

    Where there are as many connections as there may be, or no file can be opened any more, a caller that is waited for
    leaves for each new one. If nobody is slow, a few more connections are accepted, for probes to get through.

    :param listener: is not closed by `run`: what it does not take waits in the backlog.
    :param make_protocol: makes what serves a connection; the argument says whether there was no room for it.
    :param callers: knows the connections.
    :param pause_seconds: the wait after what passes.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[bool], asyncio.BaseProtocol],
        callers: Callers,
        *,
        pause_seconds: float = 0.05,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._callers = callers
        self._pause_seconds = pause_seconds
        self._reserve = Reserve(_MOST_CROWDED)
        self._connecting = 0
        self._warned_at = -inf

    async def run(self) -> None:
        """Accept until cancelled; a connection that was taken by then is served all the same."""
        async with anyio.create_task_group() as group:
            while True:
                await anyio.wait_readable(self._listener)
                try:
                    taken = self._take(limited=True)
                except OSError as error:
                    if error.errno in _BROKEN:
                        raise
                    self._warn(error.strerror or str(error))
                    taken = []
                for connection, crowded in taken:
                    group.start_soon(self._serve, connection, crowded)
                if not taken:
                    await anyio.sleep(self._pause_seconds)

    def close(self) -> None:
        """Give back what was kept for connections."""
        self._reserve.close()

    def reject_new_connections(self) -> None:
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
                self._listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    async def accept_remaining_and_close(self) -> None:
        """Take what waits in the backlog, and close the listening socket: connections are refused from now on."""
        async with anyio.create_task_group() as group:
            with suppress(OSError), closing(self._listener):  # for the very last there may be no room
                while taken := self._take(limited=False):
                    for connection, crowded in taken:
                        group.start_soon(self._serve, connection, crowded)

    def _take(self, *, limited: bool) -> list[tuple[socket.socket, bool]]:
        """Accept some connections.

        :param limited: whether the number of all connections has its limit.
        :returns: each with whether there was no room for it; none if nobody knocks, or nobody can be let in now.
        :raises OSError: none could be accepted.
        """
        callers = self._callers
        self._reserve.refill()
        room = callers.room - self._connecting if limited else _AT_A_TIME
        more = _MOST_CROWDED - len(callers.crowded)
        taken: list[tuple[socket.socket, bool]] = []
        while len(taken) < _AT_A_TIME:
            if room <= 0 and more <= 0 and not callers.any_slow():
                self._warn("too many connections")
                break
            try:
                connection, out_of_files = self._accept()
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue  # it has gone meanwhile
            except OSError:
                if taken:
                    break  # is said again next time
                raise
            connection.setblocking(False)
            crowded = (room <= 0 or out_of_files) and not callers.make_room()
            room -= 1
            more -= crowded
            taken.append((connection, crowded))
        self._connecting += len(taken)
        return taken

    def _accept(self) -> tuple[socket.socket, bool]:
        """A connection, and whether what was kept for such a case had to be given up for it."""
        try:
            return self._listener.accept()[0], False
        except OSError as error:
            if error.errno not in USED_UP:
                raise
            self._warn(error.strerror or str(error))
            if not self._reserve.give_up():
                self._callers.make_room()  # for the next time
                raise
            return self._listener.accept()[0], True

    def _warn(self, problem: str) -> None:
        now = anyio.current_time()
        if now >= self._warned_at + _WARNING_SECONDS:
            self._warned_at = now
            log.warning("connections_scarce", problem=problem, connections=len(self._callers.connected))

    async def _serve(self, connection: socket.socket, crowded: bool) -> None:
        # One turn of the event loop; cancelled, it would close the connection.
        with anyio.CancelScope(shield=True), suppress(OSError):  # it has gone meanwhile
            loop = asyncio.get_running_loop()
            try:
                await loop.connect_accepted_socket(lambda: self._make_protocol(crowded), connection)
            finally:
                self._connecting -= 1
