"""How many batches are committed at the same time, and which batch is next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

from bcs.actors.messages import BatchCommand
from bcs.supervision import ActorContext


class CommitSlots:
    """Limits the commits at the same time, and lets batches of one server follow each other.

    Commits that begin at one time share the round trip to their server. So the servers have turns: in the turn of a
    server its waiting batches get slots, the first come first, until there are none or one for each slot had its turn.
    With one server, this is a queue.

    :param limit: how many commits may run at the same time, to all servers together.
    :param server_of: batch id to a name of the server that has the batch.
    """

    def __init__(self, limit: int, server_of: Callable[[str], str]) -> None:
        self._limit = limit
        self._server_of = server_of
        self._free = limit
        # The server whose turn it is comes first. A server without a waiting batch is not here.
        self._waiting: dict[str, deque[anyio.Event]] = {}
        self._given_in_turn = 0

    def acquire_nowait(self) -> bool:
        """Take a slot; False if none is free."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def acquire(self, batch_id: str) -> None:
        """Wait for a slot. Cancellation leaves the caller without a slot."""
        server, given = self._server_of(batch_id), anyio.Event()
        self._waiting.setdefault(server, deque()).append(given)
        done = False
        try:
            await given.wait()
            done = True
        finally:
            if not done:
                if given.is_set():
                    self.release()
                else:
                    self._forget(server, given)

    def release(self) -> None:
        """Give a slot to the batch that is next."""
        if not self._waiting:
            self._free += 1
            return
        server, waiting = next(iter(self._waiting.items()))
        waiting.popleft().set()
        self._given_in_turn += 1
        if not waiting or self._given_in_turn == self._limit:
            self._given_in_turn = 0
            del self._waiting[server]
            if waiting:
                self._waiting[server] = waiting  # behind the others

    def _forget(self, server: str, given: anyio.Event) -> None:
        waiting = self._waiting[server]
        waiting.remove(given)
        if not waiting:
            if next(iter(self._waiting)) == server:
                self._given_in_turn = 0
            del self._waiting[server]


class CommitSlot:
    """The slot of an attempt of a batch's actor, which holds it or does not.

    :param slots: all slots.
    :param context: the context of the attempt. An attempt that waits for a slot does not hang.
    """

    __slots__ = ("_context", "_held", "_slots")

    def __init__(self, slots: CommitSlots, context: ActorContext[BatchCommand]) -> None:
        self._slots = slots
        self._context = context
        self._held = False

    async def acquire(self) -> None:
        """Wait for a slot, unless the attempt holds one. Cancellation leaves the attempt without a slot."""
        if self._held:
            return
        if not self._slots.acquire_nowait():
            self._context.mark_idle()
            await self._slots.acquire(self._context.name)
            self._context.heartbeat()
        self._held = True

    def release(self) -> None:
        """Give the slot to the next attempt, if this attempt holds one."""
        if self._held:
            self._held = False
            self._slots.release()
