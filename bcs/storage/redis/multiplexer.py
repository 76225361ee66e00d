"""One connection to Redis for all who want something small: their commands share its round trips.

What is asked for in one turn of the event loop goes out in one write, and the next does not wait for the answer. A
caller costs a future then, where a connection of its own costs two system calls, a deadline and a checkout. It is a
thin layer on redis-py's connection, which makes the handshake (with its TLS) and brings the parser.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import anyio
from hiredis import Reader
from redis.asyncio import Connection
from redis.exceptions import InvalidResponse, RedisError

from bcs.storage.deadlines import Deadline, Due
from bcs.storage.redis.commands import Command, packed_one
from bcs.storage.redis.errors import Unfit, reason
from bcs.storage.redis.identity import Peer

_LATE = "it did not answer in time"


class LineLost(Exception):
    """There is no connection any more, or there could be none.

    :param first: whether this caller is the first to be told of this failure.
    :param late: because there was no answer in time.
    """

    def __init__(self, cause: str, *, first: bool, late: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.first = first
        self.late = late


class Replies(list[Any]):
    """Replies, in the order of their commands.

    :param peer: the server that they came from.
    """

    __slots__ = ("peer",)

    peer: Peer


class Multiplexer:
    """Connects when it is first needed, again after a failure, and when the address has come to lead elsewhere.

    :param make: makes a connection that is not yet open.
    :param peer: tells who is at the other end of one that is.
    :param deadline_seconds: how long to connect may take, and how long an answer.
    """

    def __init__(
        self, make: Callable[[], Connection], peer: Callable[[Connection], Peer], deadline_seconds: float
    ) -> None:
        self._make = make
        self._peer = peer
        self._deadline_seconds = deadline_seconds
        self._line: _Line | None = None
        self._connecting = anyio.Lock()
        self._failed_attempts = 0
        self._failure = LineLost("never tried", first=False)
        self._closed = False

    async def send(self, commands: Sequence[Command]) -> Replies:
        """Send commands, and return their replies; what Redis refused stands among them as an error.

        They stay together and in order, so that a transaction can be among them. Cancellation leaves open whether they
        are carried out, and nobody else is affected.

        :raises LineLost: there are no replies; the commands may or may not have been carried out.
        """
        if not commands:
            return Replies()
        line = self._line
        if line is None or line.problem is not None or line.peer.outdated:
            line = await self._connect()
        return await line.post(commands)

    def close(self) -> None:
        """Close the connection, and make no other."""
        self._closed = True
        if self._line:
            self._line.lose("closed")

    async def _connect(self) -> _Line:
        failed_attempts = self._failed_attempts
        async with self._connecting:
            if self._line and self._line.problem is None and not self._line.peer.outdated:
                return self._line
            if self._line:
                # Who waits on it still gets what it has to say.
                self._line.retire()
            if self._failed_attempts > failed_attempts:
                # All who waited for one attempt fail with it, not each after one of its own.
                raise LineLost(self._failure.cause, first=False, late=self._failure.late)
            try:
                self._line = await self._open()
            except LineLost as failure:
                self._failed_attempts += 1
                self._failure = failure
                raise
            return self._line

    async def _open(self) -> _Line:
        connection = self._make()
        line: _Line | None = None
        try:
            # To break off in the middle of the handshake would only have the next caller begin it anew.
            with Deadline(self._deadline_seconds, shield=True) as deadline:
                await connection.connect()  # type: ignore[no-untyped-call]
            if deadline.expired:
                raise TimeoutError
            if self._closed:
                raise LineLost("closed", first=False)
            line = _Line(connection, self._peer(connection), self._deadline_seconds)
        except TimeoutError:
            raise LineLost(_LATE, first=True, late=True) from None
        except (RedisError, OSError, RuntimeError) as error:
            raise LineLost(reason(error), first=True) from None
        finally:
            if line is None:
                await connection.disconnect(nowait=True)
        return line


class _Order:
    """What one caller waits for; or, without an answer, what the connection itself asks who it leads to."""

    __slots__ = ("answer", "due", "missing", "replies")

    def __init__(self, answer: asyncio.Future[Replies] | None, missing: int, due: Due) -> None:
        self.answer = answer
        self.missing = missing
        self.due = due
        self.replies = Replies()


class _Line(asyncio.Protocol):
    """An open connection, from the end of the handshake on.

    :param peer: the server at its other end.
    :param problem: why it can't be used any more.
    """

    def __init__(self, connection: Connection, peer: Peer, deadline_seconds: float) -> None:
        self.problem: str | None = None
        self.peer = peer
        self._connection = connection
        self._deadline_seconds = deadline_seconds
        self._loop = asyncio.get_running_loop()
        self._orders: deque[_Order] = deque()
        self._outgoing: list[bytes] = []
        self._paused = False
        self._watched = False
        self._retired = False
        # There is no public way to these: redis-py reads through asyncio's streams, at one reply for each await.
        streams: Any = connection
        if streams._parser._reader.has_data():
            raise OSError("it said more than the handshake asked for")
        self._nothing = object()  # what the parser says when no reply is complete
        self._parser = Reader(
            protocolError=InvalidResponse, replyError=streams._parser.parse_error, notEnoughData=self._nothing
        )
        self._transport = cast("asyncio.Transport", streams._writer.transport)
        if self._transport.is_closing():
            raise OSError("the connection was closed during the handshake")
        self._transport.set_protocol(self)

    async def post(self, commands: Sequence[Command]) -> Replies:
        """Send commands with all others of this turn of the event loop."""
        # First, since it may refuse: an order without its commands would take the replies of the next one.
        outgoing = list(map(packed_one, commands))
        now = self._loop.time()
        answer: asyncio.Future[Replies] = self._loop.create_future()
        order = _Order(answer, len(outgoing), Due(self._loop, self._deadline_seconds))
        if check := self.peer.due(now):
            self._orders.append(_Order(None, 1, order.due))
            outgoing.insert(0, packed_one(check))
        self._orders.append(order)
        if not self._outgoing and not self._paused:
            self._loop.call_soon(self._flush)
        self._outgoing += outgoing
        if not self._watched:
            self._watched = True
            self._loop.call_at(order.due.at, self._look)
        return await answer

    def data_received(self, data: bytes) -> None:
        """Hand out the replies, each to the caller whose turn it is."""
        parser, orders, nothing = self._parser, self._orders, self._nothing
        try:
            parser.feed(data)
            while (reply := parser.gets()) is not nothing:
                if not orders:
                    self.lose("it said something that nobody asked for")
                    return
                order = orders[0]
                order.replies.append(reply)
                order.missing -= 1
                if not order.missing:
                    orders.popleft()
                    if order.answer is None:
                        self.peer.learn(reply)
                    elif not order.answer.done():  # else its caller was cancelled
                        order.replies.peer = self.peer
                        order.answer.set_result(order.replies)
        except (InvalidResponse, ValueError, Unfit) as error:
            self.lose(reason(error))
        if self._retired and not orders:
            self.lose("replaced")

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side closed it, or something on the way."""
        self.lose(reason(exc) if exc else "it closed the connection")

    def pause_writing(self) -> None:
        """What comes now waits: the kernel has enough."""
        self._paused = True

    def resume_writing(self) -> None:
        """The kernel takes more."""
        self._paused = False
        self._flush()

    def retire(self) -> None:
        """Close it as soon as nobody waits on it any more."""
        self._retired = True
        if not self._orders:
            self.lose("replaced")

    def lose(self, problem: str, *, late: bool = False) -> None:
        """Give this connection up, and tell all who wait for a reply on it."""
        if self.problem is not None:
            return
        self.problem = problem
        self._transport.abort()
        self._connection._writer = self._connection._reader = None  # it was ours, and is closed
        self._outgoing.clear()
        first = True
        for order in self._orders:
            if order.answer is not None and not order.answer.done():
                order.answer.set_exception(LineLost(problem, first=first, late=late))
                first = False
        self._orders.clear()

    def _flush(self) -> None:
        if self._outgoing and not self._paused and self.problem is None:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            self._transport.write(data)

    def _look(self) -> None:
        # One timer for all, since all have the same time: it is set anew only when it has run out.
        if self.problem is not None:
            return
        if not self._orders:
            self._watched = False
            return
        due, now = self._orders[0].due, self._loop.time()
        if due.at <= now and not due.put_off(now):
            self.lose(_LATE, late=True)
        else:
            self._loop.call_at(due.at, self._look)
