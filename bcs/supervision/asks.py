"""The asks that wait for one actor: all of them end when the actor dies."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import anyio

from bcs.supervision.envelope import Reply
from bcs.supervision.errors import AskTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class PendingAsks:
    """The replies that callers wait for.

    :param name: the name of the mailbox, for errors
    """

    __slots__ = ("_name", "_waiting")

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: set[Reply[object]] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, reply: Reply[T]) -> None:
        """Add a reply that has no answer yet.

        :param reply: the slot that the actor will fill
        """
        self._waiting.add(cast("Reply[object]", reply))

    async def answer(self, reply: Reply[T], timeout_seconds: float) -> T:
        """Wait for an answer. The reply is settled when this method ends, also after a cancellation.

        :param reply: a reply that was added
        :param timeout_seconds: the maximum time to wait
        :raises AskTimeout: after the deadline
        :raises BaseException: the error that the actor or the mailbox set
        """
        try:
            with anyio.move_on_after(timeout_seconds):
                return await reply.wait()
            # If the answer came together with the deadline, the answer wins: then `fail` has no effect.
            reply.fail(AskTimeout(self._name, timeout_seconds))
            return reply.result()
        finally:
            if not reply.settled:
                reply.fail(AskTimeout(self._name, timeout_seconds))
            self._waiting.discard(cast("Reply[object]", reply))

    def fail_all(self, make: Callable[[], BaseException]) -> None:
        """Fail every reply that has no answer yet.

        :param make: makes a new error for each caller, because each caller adds its own traceback to it
        """
        waiting, self._waiting = self._waiting, set()
        for reply in waiting:
            reply.fail(make())
