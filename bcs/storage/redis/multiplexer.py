"""One connection to Redis for all small calls, whose commands share round trips.

All commands of one turn of the event loop go out in one write, and the next write does not wait for the replies. So a
call costs only a future, where a connection from the pool costs two system calls, a deadline and a checkout. This is a
thin layer on redis-py's connection, which makes the handshake (with TLS) and has the parser.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import anyio
from hiredis import Reader
from redis.asyncio import Connection
from redis.exceptions import InvalidResponse, RedisError

from bcs.storage.deadlines import Deadline, Due, lag_of
from bcs.storage.redis.commands import Command, packed_one
from bcs.storage.redis.errors import UnusableServer, reason
from bcs.storage.redis.identity import Peer

_LATE = "it did not answer in time"


class ConnectionLost(Exception):
    """The connection was lost, or could not be made.

    :param first: True for the first caller that gets this failure.
    :param late: True if Redis did not answer in time.
    :param unsent: True if the commands were not sent.
    """

    def __init__(self, cause: str, *, first: bool, late: bool = False, unsent: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.first = first
        self.late = late
        self.unsent = unsent


class Sender(Protocol):
    """The server that sent replies."""

    @property
    def identity(self) -> str:
        """The identity of the server; empty where it is unknown."""
        ...


class Replies(list[Any]):
    """Replies, in the order of their commands.

    :param peer: the server that sent the replies; where a slot's keys are on two nodes, the sender of the last one.
    """

    __slots__ = ("peer",)

    peer: Sender


class Multiplexer:
    """Connects at the first call, after a failure, and when the address leads to another server.

    :param make: makes a connection that is not open yet.
    :param peer: returns the server at the other end of an open connection.
    :param deadline_seconds: how long connecting may take, and how long a reply may take.
    """

    def __init__(
        self, make: Callable[[], Connection], peer: Callable[[Connection], Peer], deadline_seconds: float
    ) -> None:
        self._make = make
        self._peer = peer
        self._deadline_seconds = deadline_seconds
        self._shared: _SharedConnection | None = None
        self._connecting = anyio.Lock()
        self._failed_attempts = 0
        self._failure = ConnectionLost("never tried", first=False)
        self._closed = False

    async def send(self, commands: Sequence[Command]) -> Replies:
        """Send commands, and return their replies; a refused command has an error in its place.

        The commands stay together and in order, so they can include a transaction. After a cancellation the commands
        may or may not be carried out; other callers are not affected.

        :raises ConnectionLost: there are no replies; the commands may or may not have been carried out.
        """
        if not commands:
            return Replies()
        shared = self._shared
        if shared is None or shared.problem is not None or shared.peer.outdated:
            shared = await self._connect()
        return await shared.post(commands)

    def close(self) -> None:
        """Close the connection, and make no new one."""
        self._closed = True
        if self._shared:
            self._shared.fail("closed")

    async def _connect(self) -> _SharedConnection:
        failed_attempts = self._failed_attempts
        async with self._connecting:
            if self._shared and self._shared.problem is None and not self._shared.peer.outdated:
                return self._shared
            if self._shared:
                # Callers with pending calls on the old connection still get their replies.
                self._shared.drain()
            if self._failed_attempts > failed_attempts:
                # All callers that waited for one attempt fail with it, instead of trying one after another.
                raise ConnectionLost(self._failure.cause, first=False, late=self._failure.late, unsent=True)
            try:
                self._shared = await self._open()
            except ConnectionLost as failure:
                self._failed_attempts += 1
                self._failure = failure
                raise
            return self._shared

    async def _open(self) -> _SharedConnection:
        connection = self._make()
        shared: _SharedConnection | None = None
        try:
            # Shielded, because the next caller would only repeat an interrupted handshake.
            with Deadline(self._deadline_seconds, shield=True) as deadline:
                await connection.connect()  # type: ignore[no-untyped-call]
            if deadline.expired:
                raise TimeoutError
            if self._closed:
                raise ConnectionLost("closed", first=False, unsent=True)
            shared = _SharedConnection(connection, self._peer(connection), self._deadline_seconds)
        except TimeoutError:
            raise ConnectionLost(_LATE, first=True, late=True, unsent=True) from None
        except (RedisError, OSError, RuntimeError) as error:
            raise ConnectionLost(reason(error), first=True, unsent=True) from None
        finally:
            if shared is None:
                await connection.disconnect(nowait=True)
        return shared


class _PendingCall:
    """The call of one caller; if `answer` is None, a check of the server by the connection itself."""

    __slots__ = ("answer", "due", "missing", "replies")

    def __init__(self, answer: asyncio.Future[Replies] | None, missing: int, due: Due) -> None:
        self.answer = answer
        self.missing = missing
        self.due = due
        self.replies = Replies()


class _SharedConnection(asyncio.Protocol):
    """An open connection, after the handshake.

    :param peer: the server at the other end.
    :param problem: why the connection can't be used any more; None while it can.
    """

    def __init__(self, connection: Connection, peer: Peer, deadline_seconds: float) -> None:
        self.problem: str | None = None
        self.peer = peer
        self._connection = connection
        self._deadline_seconds = deadline_seconds
        self._loop = asyncio.get_running_loop()
        self._lag = lag_of(self._loop)
        self._pending: deque[_PendingCall] = deque()
        self._outgoing: list[bytes] = []
        self._paused = False
        self._timer_is_set = False
        self._draining = False
        # redis-py has no public attributes for these, and its own reads through asyncio's streams need one await per
        # reply.
        streams: Any = connection
        if streams._parser._reader.has_data():
            raise OSError("it sent more than the replies of the handshake")
        self._nothing = object()  # the parser returns this when no reply is complete
        self._parser = Reader(
            protocolError=InvalidResponse, replyError=streams._parser.parse_error, notEnoughData=self._nothing
        )
        self._transport = cast("asyncio.Transport", streams._writer.transport)
        if self._transport.is_closing():
            raise OSError("the connection was closed during the handshake")
        self._transport.set_protocol(self)

    async def post(self, commands: Sequence[Command]) -> Replies:
        """Send commands together with all other commands of this turn of the event loop."""
        # Before the call is pending: if packing fails, a pending call without commands would get the next call's
        # replies.
        outgoing = list(map(packed_one, commands))
        now = self._loop.time()
        answer: asyncio.Future[Replies] = self._loop.create_future()
        call = _PendingCall(answer, len(outgoing), Due(self._lag, self._deadline_seconds, now))
        if check := self.peer.due(now):
            self._pending.append(_PendingCall(None, 1, call.due))
            outgoing.insert(0, packed_one(check))
        self._pending.append(call)
        if not self._outgoing and not self._paused:
            self._loop.call_soon(self._flush)
        self._outgoing += outgoing
        if not self._timer_is_set:
            self._timer_is_set = True
            self._loop.call_at(call.due.at, self._check_deadline)
        return await answer

    def data_received(self, data: bytes) -> None:
        """Give each reply to its call, in order."""
        parser, pending, nothing = self._parser, self._pending, self._nothing
        try:
            parser.feed(data)
            while (reply := parser.gets()) is not nothing:
                if not pending:
                    self.fail("it sent a reply without a command")
                    return
                call = pending[0]
                call.replies.append(reply)
                call.missing -= 1
                if not call.missing:
                    pending.popleft()
                    if call.answer is None:
                        self.peer.check_reply(reply)
                    elif not call.answer.done():  # else its caller was cancelled
                        call.replies.peer = self.peer
                        call.answer.set_result(call.replies)
        except (InvalidResponse, ValueError, UnusableServer) as error:
            self.fail(reason(error))
        if self._draining and not pending:
            self.fail("replaced")

    def connection_lost(self, exc: Exception | None) -> None:
        """The server or the network closed the connection."""
        self.fail(reason(exc) if exc else "it closed the connection")

    def pause_writing(self) -> None:
        """The kernel's buffer is full, so further commands wait."""
        self._paused = True

    def resume_writing(self) -> None:
        """The kernel's buffer has room again."""
        self._paused = False
        self._flush()

    def drain(self) -> None:
        """Accept no more calls, and close the connection once all pending calls have their replies."""
        self._draining = True
        if not self._pending:
            self.fail("replaced")

    def fail(self, problem: str, *, late: bool = False) -> None:
        """Close the connection; every pending call fails."""
        if self.problem is not None:
            return
        self.problem = problem
        self._transport.abort()
        self._connection._writer = self._connection._reader = None  # this class owned the transport and has closed it
        self._outgoing.clear()
        first = True
        for call in self._pending:
            if call.answer is not None and not call.answer.done():
                call.answer.set_exception(ConnectionLost(problem, first=first, late=late))
                first = False
        self._pending.clear()

    def _flush(self) -> None:
        if self._outgoing and not self._paused and self.problem is None:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            self._transport.write(data)

    def _check_deadline(self) -> None:
        # One timer is enough, because all calls have the same deadline. It is set again only after it has expired.
        if self.problem is not None:
            return
        if not self._pending:
            self._timer_is_set = False
            return
        due, now = self._pending[0].due, self._loop.time()
        if due.at <= now and not due.postpone(now):
            self.fail(_LATE, late=True)
        else:
            self._loop.call_at(due.at, self._check_deadline)
