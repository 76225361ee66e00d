"""The content of a mailbox: envelopes with messages, and the slots for answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import anyio

M = TypeVar("M")
T = TypeVar("T")


class Reply(Generic[T]):
    """The slot for one answer: the first answer wins, later answers are ignored."""

    __slots__ = ("_error", "_event", "_resolved", "_value")

    def __init__(self) -> None:
        self._resolved = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._event: anyio.Event | None = None

    @property
    def settled(self) -> bool:
        """True if the reply has an answer or an error; also after the ask timed out or was cancelled."""
        return self._resolved

    def send(self, value: T) -> bool:
        """Set the answer.

        :param value: the answer
        :returns: False when the reply was already settled
        """
        if self._resolved:
            return False
        self._value = value
        self._resolve()
        return True

    def fail(self, error: BaseException) -> bool:
        """Set an error, which `ask` then raises in the caller.

        :param error: the error
        :returns: False when the reply was already settled
        """
        if self._resolved:
            return False
        self._error = error
        self._resolve()
        return True

    async def wait(self) -> T:
        """Wait for the answer.

        Cancellation leaves the slot open, because other tasks may wait for it too.

        :raises BaseException: the error that was set with `fail`
        """
        if not self._resolved:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        return self.result()

    def result(self) -> T:
        """The answer of a settled reply.

        :raises BaseException: the error that was set with `fail`
        :raises RuntimeError: when the reply is not settled
        """
        if not self._resolved:
            raise RuntimeError("the reply is not settled")
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def _resolve(self) -> None:
        self._resolved = True
        if self._event is not None:
            self._event.set()


@dataclass(frozen=True, slots=True, eq=False)
class Envelope(Generic[M]):
    """A message in a mailbox. Two envelopes are never equal, even with equal messages.

    :param message: the message
    :param enqueued_at: the time of sending, in seconds of anyio's clock
    :param attempts: the number of deliveries after which the actor crashed or hung, maybe because of this message
    :param reply: the slot for the answer, if the message is an ask
    :param last_error: the error that ended the last of these deliveries
    """

    message: M
    enqueued_at: float
    attempts: int = 0
    reply: Reply[object] | None = None
    last_error: BaseException | None = None

    @property
    def caller_gone(self) -> bool:
        """True if the message is an ask, and its caller does not wait for the answer any more."""
        return self.reply is not None and self.reply.settled
