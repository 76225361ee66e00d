"""A TCP proxy that misbehaves on request, to put between a client and a real server."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Self

HOST = "127.0.0.1"

_CHUNK_BYTES = 65536
# How long the server may take over the request whose reply is to be lost.
_LOST_REPLY_SECONDS = 10.0
# Closing a socket that lingers for zero seconds sends RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class LostReplies:
    """Which replies are to be lost, of one server or of several together.

    :param after_request_matching: what the request holds; None for any request.
    :param left: how many.
    """

    after_request_matching: bytes | None
    left: int


class _Connection:
    def __init__(self, client: socket.socket, host: str) -> None:
        self.client = client
        self.host = host
        self.server: socket.socket | None = None
        self.task: asyncio.Task[None] | None = None
        self.reset = False
        self.reply_is_lost = False


class FaultProxy:
    """Forwards every connection to ``target_host:target_port``, with the faults that its methods switch on.

    Runs in the event loop that enters it. Works on raw sockets: what the proxy does not take out of a socket stays in
    the kernel's buffers, so a slow or frozen side holds up the other one as it would without a proxy.
    """

    def __init__(self, target_host: str, target_port: int, listen_port: int = 0) -> None:
        self.target = (target_host, target_port)
        self.port = listen_port  # 0 until entered means: any
        self.connections_accepted = 0
        self.connections_cut = 0
        self.replies_dropped = 0
        self._listener: socket.socket | None = None
        self._accepting = False
        self._connections: set[_Connection] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._held: dict[str, asyncio.Event] = {}
        self._delay_seconds = 0.0
        self._delay_changed = asyncio.Event()
        self._lost = LostReplies(None, 0)
        self._edits: dict[bytes, bytes] = {}
        self._piece_bytes = _CHUNK_BYTES

    @property
    def address(self) -> str:
        """``host:port`` for clients; final once entered."""
        return f"{HOST}:{self.port}"

    @property
    def connections_open(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        self._bind()
        self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        await self._end_connections()
        if self._listener is not None:
            self._listener.close()

    def accept(self) -> None:
        """Take connections again, on the same port."""
        if not self._accepting and self._listener is not None:
            self._listener.listen(128)
            # Not sock_accept: cancelled at the wrong moment, that loses a connection it has already taken.
            asyncio.get_running_loop().add_reader(self._listener, self._take_connections, self._listener)
            self._accepting = True

    def refuse(self) -> None:
        """Refuse new connections, as if the server were down; open ones stay (see :meth:`cut`)."""
        if self._accepting and self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._accepting = False
            self._listener.close()
            # Bound but not listening: connections are refused, and nobody else can get the port.
            self._bind()

    async def cut(self) -> None:
        """Reset all connections, on both sides; bytes on their way are lost."""
        self.connections_cut += len(self._connections)
        await self._end_connections()

    def freeze(self) -> None:
        """Let no byte through in either direction; new connections are taken, and get nothing either."""
        self._flowing.clear()

    def freeze_from(self, host: str) -> None:
        """The same for the connections that come from one address alone."""
        self._held.setdefault(host, asyncio.Event())

    def thaw(self) -> None:
        """Let the bytes go on where :meth:`freeze` and :meth:`freeze_from` held them."""
        self._flowing.set()
        for freed in self._held.values():
            freed.set()
        self._held.clear()

    def delay(self, seconds: float) -> None:
        """Hold every reply back for so long (requests pass at once); a change lets go of what is held now."""
        self._delay_seconds = seconds
        self._delay_changed.set()
        self._delay_changed = asyncio.Event()

    def drop_replies(self, after_request_matching: bytes | None, count: int = 1) -> None:
        """Lose the reply to the next ``count`` requests that hold these bytes (None: to any), and cut the connection.

        The server gets the request and has answered it when the client's connection is reset. The connection takes no
        further requests; replies to earlier requests that are still on their way may be lost too.
        """
        self.lose(LostReplies(after_request_matching, count))

    def lose(self, replies: LostReplies) -> None:
        """The same for replies of several servers, which count together."""
        self._lost = replies

    def edit_replies(self, edits: dict[bytes, bytes]) -> None:
        """Let replies have something else in the place of these bytes, of the same length."""
        self._edits = edits

    def cut_replies_into_pieces(self, length_bytes: int) -> None:
        """Let replies arrive in pieces of so many bytes, each on its own."""
        self._piece_bytes = length_bytes

    def _bind(self) -> None:
        self._listener = socket.socket()
        self._listener.setblocking(False)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((HOST, self.port))
        self.port = self._listener.getsockname()[1]

    def _take_connections(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                client, (host, _) = listener.accept()
                self.connections_accepted += 1
                connection = _Connection(client, host)
                self._connections.add(connection)
                connection.task = asyncio.create_task(self._serve(connection))

    async def _end_connections(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.reset = True
            if connection.task is not None:
                connection.task.cancel()
        await asyncio.gather(*(c.task for c in connections if c.task is not None), return_exceptions=True)
        # A task that was cancelled before its first step has not run its own clean-up.
        for connection in connections:
            self._close(connection)

    async def _serve(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._may_flow(connection)
            connection.client.setblocking(False)
            connection.server = socket.socket()
            connection.server.setblocking(False)
            for end in (connection.client, connection.server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(connection.server, self.target)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump_requests(connection, connection.client, connection.server))
                pumps.create_task(self._pump_replies(connection, connection.server, connection.client))
        except* OSError:
            # One side is gone without a goodbye, or cannot be reached; the other one gets to feel it.
            connection.reset = True
        finally:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        for end in (connection.client, connection.server):
            if end is not None and end.fileno() != -1:
                if connection.reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                end.close()

    async def _pump_requests(self, connection: _Connection, client: socket.socket, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        seen = b""
        while chunk := await self._receive(connection, client):
            lost = self._lost
            pattern = lost.after_request_matching or b""
            # A pattern may be spread over chunks, so the end of what has passed is looked at again.
            seen = seen[max(0, len(seen) - len(pattern) + 1) :] + chunk
            lose = lost.left > 0 and pattern in seen
            lost.left -= lose
            await loop.sock_sendall(server, chunk)
            if lose:
                connection.reply_is_lost = True
                return
        self._half_close(server)

    async def _pump_replies(self, connection: _Connection, server: socket.socket, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while chunk := await self._receive(connection, server):
            if connection.reply_is_lost:
                await self._lose_reply(connection, server)
                return
            if self._delay_seconds > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._delay_seconds):
                        await self._delay_changed.wait()
            for said, said_instead in self._edits.items():
                chunk = chunk.replace(said, said_instead)
            await self._may_flow(connection)
            for start in range(0, len(chunk), self._piece_bytes):
                if start:
                    await asyncio.sleep(0)  # the client reads the piece before
                await loop.sock_sendall(client, chunk[start : start + self._piece_bytes])
        self._half_close(client)

    async def _receive(self, connection: _Connection, source: socket.socket) -> bytes:
        await self._may_flow(connection)
        chunk = await asyncio.get_running_loop().sock_recv(source, _CHUNK_BYTES)
        await self._may_flow(connection)  # a chunk that came in while frozen has to wait too
        return chunk

    async def _may_flow(self, connection: _Connection) -> None:
        await self._flowing.wait()
        if held := self._held.get(connection.host):
            await held.wait()

    async def _lose_reply(self, connection: _Connection, server: socket.socket) -> None:
        # These bytes may still answer an earlier request. The server reads in order, so once it has seen the end of
        # the stream and hung up, it has carried out the request in question too.
        async with asyncio.timeout(_LOST_REPLY_SECONDS):
            self._half_close(server)
            while await asyncio.get_running_loop().sock_recv(server, _CHUNK_BYTES):
                pass
        self.replies_dropped += 1
        self.connections_cut += 1
        raise ConnectionResetError("the reply is lost on purpose")

    def _half_close(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_WR)
