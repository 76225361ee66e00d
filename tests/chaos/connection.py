"""One connection of a caller, on a bare socket: what became of a request is known for certain."""

import asyncio
import socket
from enum import StrEnum

GOODBYE = b"Connection: close"
_PATIENCE_SECONDS = 30.0
_LAST_BYTES = 10


class Ending(StrEnum):
    """How a request ended that got no answer."""

    REFUSED = "refused"  # nobody listened
    RESET = "reset"  # or hung up on, with the request on its way
    HUNG = "hung"


class Connection:
    """One connection, with one request at a time on it."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._spent = False

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """A new one; where the backlog is full, the kernel waits for room."""
        client = socket.socket()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        except BaseException:
            client.close()
            raise
        return cls(client)

    @property
    def over(self) -> bool:
        """Whether no more can be asked: a connection that is closed with nothing on its way is no fault."""
        if self._spent:
            return True
        try:
            return self._client.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    async def ask(self, message: bytes, halt_seconds: float) -> tuple[str, bytes]:
        """Send a request; the status of the answer, or how it ended without one, and the body."""
        self._spent = True
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                if halt_seconds:
                    await loop.sock_sendall(self._client, message[:-_LAST_BYTES])
                    # A caller that is slow to send.
                    await asyncio.sleep(halt_seconds)
                    message = message[-_LAST_BYTES:]
                await loop.sock_sendall(self._client, message)
                head, body = await self._answer()
        except TimeoutError:
            return Ending.HUNG, b""
        except (ConnectionError, EOFError):
            return Ending.RESET, b""
        self._spent = GOODBYE.lower() in head.lower()
        return head[9:12].decode(), body

    async def _answer(self) -> tuple[bytes, bytes]:
        head, _, body = (await self._receive()).partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += await self._receive()
        return head, body

    async def _receive(self) -> bytes:
        chunk = await asyncio.get_running_loop().sock_recv(self._client, 65536)
        if not chunk:
            raise EOFError
        return chunk

    def close(self) -> None:
        """Close it."""
        self._client.close()
