"""A bounded queue on anyio's memory stream: the head can be read, and items can be taken after the close."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
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

    def __init__(self, capacity: float) -> None:
        sender, receiver = anyio.create_memory_object_stream[T](capacity)
        with sender, receiver:  # anyio has no other way to make streams of our own classes
            self._sender, self._receiver = _Sender(sender._state), _Receiver(receiver._state)
        # The stream gives no access to its head, so this deque mirrors the stream, with the waiting senders' items.
        self._order: deque[T] = deque()
        self._remaining: deque[T] | None = None

    def __len__(self) -> int:
        return self._receiver.statistics().current_buffer_used if self._remaining is None else len(self._remaining)

    @property
    def closed(self) -> bool:
        """True if the queue accepts no more items."""
        return self._remaining is not None

    def peek(self) -> T | None:
        """The next item, which stays in the queue; None when the queue is empty."""
        items = self._order if self._remaining is None else self._remaining
        return items[0] if items else None

    def put_nowait(self, item: T) -> None:
        """Put an item into the queue.

        :param item: the item
        :raises anyio.WouldBlock: when the queue is full
        :raises anyio.ClosedResourceError: when the queue is closed
        """
        self._sender.send_nowait(item)
        self._order.append(item)

    async def put(self, item: T) -> None:
        """Put an item into the queue, and wait for room. A cancelled call leaves nothing in the queue.

        :param item: the item
        :raises anyio.ClosedResourceError: when the queue is closed, also in calls that already wait
        """
        self._order.append(item)
        try:
            await self._sender.send(item)
        except BaseException:
            self._forget(item)
            raise

    def take_nowait(self) -> T | None:
        """Take the next item; None when the queue is empty."""
        if self._remaining is not None:
            return self._remaining.popleft() if self._remaining else None
        try:
            item = self._receiver.receive_nowait()
        except (anyio.WouldBlock, anyio.EndOfStream):
            return None
        self._forget(item)
        return item

    def close(self) -> None:
        """Accept no more items. The remaining items can still be taken."""
        if self._remaining is None:
            self._sender.close()
            rest: deque[T] = deque()
            while (item := self.take_nowait()) is not None:
                rest.append(item)
            self._receiver.close()
            self._remaining = rest

    def _forget(self, item: T) -> None:
        if self._order and self._order[0] is item:
            self._order.popleft()
        else:
            # The order differs: a waiting sender was cancelled, or other senders overtook it.
            with suppress(ValueError):
                self._order.remove(item)
