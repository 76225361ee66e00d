"""A place between clients and a server from which to listen to what they say, and to hold it back for a while."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import anyio
from anyio.abc import SocketAttribute, SocketStream

from bcs.devtools.servers.embedded import HOST


class Conversation(Protocol):
    """One client's connection. What it is told of is passed on when it has returned."""

    async def request(self, chunk: bytes) -> None:
        """The client has said something."""

    async def reply(self, chunk: bytes) -> None:
        """The server has said something."""


class Hold:
    """Where something is held back, once.

    :param caught: that something has come.
    :param port: of the client that it came from.
    """

    def __init__(self) -> None:
        self.caught = anyio.Event()
        self.port = 0
        self._released = anyio.Event()

    async def wait(self, port: int) -> None:
        """Be held."""
        self.port = port
        self.caught.set()
        await self._released.wait()

    def release(self) -> None:
        """Let go of it."""
        self._released.set()


@dataclass
class Writes:
    """Conversations with Redis, of which one commit is held back when there is a ``hold``."""

    hold: Hold | None = None

    def conversation(self, port: int) -> "_Writing":
        """What one client says."""
        return _Writing(self, port)


@dataclass
class _Writing:
    writes: Writes
    port: int

    async def request(self, chunk: bytes) -> None:
        if self.writes.hold and b"EVALSHA\r\n" in chunk:
            hold, self.writes.hold = self.writes.hold, None
            await hold.wait(self.port)

    async def reply(self, _: bytes) -> None:
        pass


@asynccontextmanager
async def between(listen_port: int, server_port: int, converse: Callable[[int], Conversation]) -> AsyncIterator[None]:
    """Stand between clients and a server.

    :param converse: makes the conversation of a client, whose port it is told.
    """

    async def serve(client: SocketStream) -> None:
        conversation = converse(client.extra_attributes[SocketAttribute.remote_port]())
        try:
            async with client, await anyio.connect_tcp(HOST, server_port) as server, anyio.create_task_group() as both:

                async def pump(
                    source: SocketStream, sink: SocketStream, hear: Callable[[bytes], Awaitable[None]]
                ) -> None:
                    async for chunk in source:
                        # Heard before it is passed on: whatever the other side does about it comes later.
                        await hear(chunk)
                        await sink.send(chunk)
                    both.cancel_scope.cancel()

                both.start_soon(pump, client, server, conversation.request)
                both.start_soon(pump, server, client, conversation.reply)
        except* (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # one side is gone without a goodbye; the other one is hung up on

    listener = await anyio.create_tcp_listener(local_host=HOST, local_port=listen_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield
        group.cancel_scope.cancel()
