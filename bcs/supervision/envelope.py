"""What lies in a mailbox: a message, its envelope, and the slot for an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import anyio

M = TypeVar("M")
T = TypeVar("T")


class Reply(Generic[T]):
    """The slot for one answer; the first one wins and later ones are ignored."""

    __slots__ = ("_error", "_event", "_settled", "_value")

    def __init__(self) -> None:
        self._settled = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._event: anyio.Event | None = None

    @property
    def settled(self) -> bool:
        """Whether there is an answer, an error, or nobody left who waits."""
        return self._settled

    def send(self, value: T) -> bool:
        """Answer.

        :param value: the answer
        :returns: False when it came too late
        """
        if self._settled:
            return False
        self._value = value
        self._settle()
        return True

    def fail(self, error: BaseException) -> bool:
        """Answer with an error, which the asker gets raised.

        :param error: what to raise there
        :returns: False when it came too late
        """
        if self._settled:
            return False
        self._error = error
        self._settle()
        return True

    async def wait(self) -> T:
        """Wait for the answer.

        Cancellation leaves the slot open: another may still wait for it.

        :raises BaseException: the error that it was failed with
        """
        if not self._settled:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        return self.result()

    def result(self) -> T:
        """The answer of a settled slot.

        :raises BaseException: the error that it was failed with
        :raises RuntimeError: when there is no answer yet
        """
        if not self._settled:
            raise RuntimeError("the reply is not settled")
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def _settle(self) -> None:
        self._settled = True
        if self._event is not None:
            self._event.set()


@dataclass(frozen=True, slots=True, eq=False)
class Envelope(Generic[M]):
    """A message on its way; two envelopes are never equal, even with equal messages.

    :param message: what was sent
    :param enqueued_at: when it was sent, in seconds of anyio's clock
    :param attempts: how many deliveries ended with a death of the actor that it may have caused: a crash or a hang
    :param reply: where an answer goes, when it was an ask
    :param last_error: what ended the last attempt whose death it may have caused
    """

    message: M
    enqueued_at: float
    attempts: int = 0
    reply: Reply[object] | None = None
    last_error: BaseException | None = None

    @property
    def caller_gone(self) -> bool:
        """Whether it was an ask for whose answer nobody waits any longer."""
        return self.reply is not None and self.reply.settled
