"""A bounded queue: anyio's memory stream, with a view of its head, and with its rest left after it was closed."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Queue(Generic[T]):
    """First in, first out, for each sender; among several that wait for room, trio wakes them in any order.

    Items are told apart by identity.

    :param capacity: how many items, or `math.inf`
    """

    def __init__(self, capacity: float) -> None:
        self._sender, self._receiver = anyio.create_memory_object_stream[T](capacity)
        # The stream does not let us look at its head, so this mirrors it (senders that wait for room included).
        self._order: deque[T] = deque()
        self._rest: deque[T] | None = None

    def __del__(self) -> None:
        # A queue that was never closed holds nothing but memory: not worth anyio's ResourceWarning.
        for name in ("_sender", "_receiver"):
            stream = getattr(self, name, None)
            if stream is not None:
                stream.close()

    def __len__(self) -> int:
        return self._receiver.statistics().current_buffer_used if self._rest is None else len(self._rest)

    @property
    def closed(self) -> bool:
        """Whether it takes no more items."""
        return self._rest is not None

    def peek(self) -> T | None:
        """The item that comes next; None when there is none."""
        items = self._order if self._rest is None else self._rest
        return items[0] if items else None

    def put_nowait(self, item: T) -> None:
        """Put an item in.

        :param item: what
        :raises anyio.WouldBlock: when there is no room
        :raises anyio.ClosedResourceError: when it is closed
        """
        self._sender.send_nowait(item)
        self._order.append(item)

    async def put(self, item: T) -> None:
        """Put an item in, and wait for room; cancellation while it waits leaves nothing behind.

        :param item: what
        :raises anyio.ClosedResourceError: when it is closed, also for those who wait
        """
        self._order.append(item)
        try:
            await self._sender.send(item)
        except BaseException:
            self._forget(item)
            raise

    def take_nowait(self) -> T | None:
        """Take the next item; None when there is none."""
        if self._rest is not None:
            return self._rest.popleft() if self._rest else None
        try:
            item = self._receiver.receive_nowait()
        except (anyio.WouldBlock, anyio.EndOfStream):
            return None
        self._forget(item)
        return item

    def close(self) -> None:
        """Take no more items; what is in it can still be taken."""
        if self._rest is None:
            self._sender.close()
            rest: deque[T] = deque()
            while (item := self.take_nowait()) is not None:
                rest.append(item)
            self._receiver.close()
            self._rest = rest

    def _forget(self, item: T) -> None:
        if self._order and self._order[0] is item:
            self._order.popleft()
        else:
            # Out of step: a sender that gave up, or one that others overtook while it gave way.
            with suppress(ValueError):
                self._order.remove(item)
