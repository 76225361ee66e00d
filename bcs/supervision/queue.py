"""A bounded queue on anyio's memory stream: the head can be read, and items can be taken after the close."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

T = TypeVar("T")


class _Sender(MemoryObjectSendStream[T]):
    """A send stream that may be dropped open without a ResourceWarning, since an open queue holds only memory.

    The queue's own finalizer could be too late: the garbage collector finalizes the members of a cycle in any order.
    """

    def __del__(self) -> None:
        pass


class _Receiver(MemoryObjectReceiveStream[T]):
    """A receive stream that may be dropped open, for the same reason."""

    def __del__(self) -> None:
        pass


class Queue(Generic[T]):
    """First in, first out for each sender; several waiting senders may be served in any order (on trio).

    Items are compared by identity.

    :param capacity: the maximum number of items, or `math.inf`
    """

    __slots__ = ("_buffer", "_closed", "_receiver", "_sender")

    def __init__(self, capacity: float) -> None:
        self._sender: MemoryObjectSendStream[T]
        self._receiver: MemoryObjectReceiveStream[T]
        # Without [T], which would cost as much as the stream.
        self._sender, self._receiver = anyio.create_memory_object_stream(capacity)
        # anyio has no other way to make streams of our own classes.
        self._sender.__class__, self._receiver.__class__ = _Sender, _Receiver
        # The stream has no method that shows its head. A sender waits only while the buffer is full, and a taken item
        # makes room for a waiting one at once, so the head of the buffer is the head of the queue.
        self._buffer: deque[T] = self._sender._state.buffer
        self._closed = False

    def __len__(self) -> int:
        return len(self._buffer)

    def __contains__(self, item: object) -> bool:
        return any(held is item for held in self._buffer)

    @property
    def closed(self) -> bool:
        """True if the queue accepts no more items."""
        return self._closed

    def peek(self) -> T | None:
        """The next item, which stays in the queue; None when the queue is empty."""
        return self._buffer[0] if self._buffer else None

    def put_nowait(self, item: T) -> None:
        """Put an item into the queue.

        :param item: the item
        :raises anyio.WouldBlock: when the queue is full
        :raises anyio.ClosedResourceError: when the queue is closed
        """
        self._sender.send_nowait(item)

    async def put(self, item: T) -> None:
        """Put an item into the queue, and wait for room. A cancelled call leaves nothing in the queue.

        :param item: the item
        :raises anyio.ClosedResourceError: when the queue is closed, also in calls that already wait
        """
        await self._sender.send(item)

    def take_nowait(self) -> T | None:
        """Take the next item; None when the queue is empty."""
        if not self._buffer:
            return None
        return self._buffer.popleft() if self._closed else self._receiver.receive_nowait()

    def close(self) -> None:
        """Accept no more items. The remaining items can still be taken."""
        if not self._closed:
            self._closed = True
            self._sender.close()
            self._receiver.close()
