"""The asks that wait for one actor, so that all of them end when it dies."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import anyio

from bcs.supervision.envelope import Reply
from bcs.supervision.errors import AskTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class PendingAsks:
    """Replies somebody waits for.

    :param name: of the mailbox, for errors
    """

    __slots__ = ("_name", "_waiting")

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: set[Reply[object]] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, reply: Reply[T]) -> None:
        """Remember a reply.

        :param reply: what the actor will answer into
        """
        self._waiting.add(cast("Reply[object]", reply))

    async def answer(self, reply: Reply[T], timeout_seconds: float) -> T:
        """Wait for an answer; afterwards the reply is settled in any case, under cancellation too.

        :param reply: what was added
        :param timeout_seconds: how long
        :raises AskTimeout: after the deadline
        :raises BaseException: what the reply was failed with
        """
        try:
            with anyio.move_on_after(timeout_seconds):
                return await reply.wait()
            # An answer that came together with the deadline counts: then this fails nothing.
            reply.fail(AskTimeout(self._name, timeout_seconds))
            return reply.result()
        finally:
            if not reply.settled:
                reply.fail(AskTimeout(self._name, timeout_seconds))
            self._waiting.discard(cast("Reply[object]", reply))

    def fail_all(self, make: Callable[[], BaseException]) -> None:
        """Fail every reply that has no answer yet.

        :param make: makes the error, a new one for each asker, for each adds its own traceback
        """
        waiting, self._waiting = self._waiting, set()
        for reply in waiting:
            reply.fail(make())
