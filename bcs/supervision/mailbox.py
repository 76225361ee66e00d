"""A bounded mailbox that outlives its actor.

Nothing is ever handed from a sender to a waiting receiver: a receiver waits for the news that something came, and then
takes it without a pause. So a cancelled receive cannot lose an envelope, however the cancellation came about.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import anyio
from anyio.lowlevel import checkpoint

from bcs.supervision.asks import PendingAsks
from bcs.supervision.clock import LoopClock
from bcs.supervision.envelope import Envelope, Reply
from bcs.supervision.errors import ActorDied, MailboxClosed, MailboxFull
from bcs.supervision.queue import Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

M = TypeVar("M")
T = TypeVar("T")


class Mailbox(Generic[M]):
    """Envelopes for one actor: queued, unacked, or to be delivered again.

    What is unacked or to be delivered again does not count against the capacity.

    :param name: for errors and snapshots
    :param capacity: how many envelopes may queue, or `math.inf`
    :param max_deliveries: after so many deliveries that ended in the actor's death `serve` gives an envelope up
    :param clock: of the event loop; shared by mailboxes that do not live long
    :raises ValueError: for a capacity or a number of deliveries below one
    """

    def __init__(self, name: str, capacity: float, max_deliveries: int = 3, *, clock: LoopClock | None = None) -> None:
        if capacity < 1 or max_deliveries < 1:
            raise ValueError(f"{name}: capacity and max_deliveries start at 1")
        self.name = name
        self.capacity = capacity if math.isinf(capacity) else int(capacity)
        self.max_deliveries = max_deliveries
        self.clock = clock or LoopClock()
        self._queue: Queue[Envelope[M]] = Queue(self.capacity)
        self._redelivery: deque[Envelope[M]] = deque()
        self._unacked: list[Envelope[M]] = []
        self._asks = PendingAsks(name)
        self._arrival: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<Mailbox {self.name} {self.depth}/{self.capacity}{' closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether it takes no more envelopes."""
        return self._queue.closed

    @property
    def depth(self) -> int:
        """How many envelopes are queued, unacked, or to be delivered again."""
        return len(self._queue) + len(self._redelivery) + len(self._unacked)

    @property
    def unacked(self) -> tuple[Envelope[M], ...]:
        """The envelopes that were received and not yet acked."""
        return tuple(self._unacked)

    @property
    def pending_asks(self) -> int:
        """How many asks wait for an answer."""
        return len(self._asks)

    def oldest_age_seconds(self, now: float) -> float:
        """How long the oldest envelope has been here, 0.0 when there is none.

        :param now: the present, in seconds of anyio's clock
        """
        head = self._queue.peek()
        times = [envelope.enqueued_at for envelope in (*self._unacked, *self._redelivery, *([head] if head else []))]
        return max(0.0, now - min(times)) if times else 0.0

    def send_nowait(self, message: M) -> None:
        """Put a message in.

        :param message: what to send
        :raises MailboxFull: when there is no room
        :raises MailboxClosed: after `close`
        """
        self._put(Envelope(message, self.clock()))

    async def send(self, message: M) -> None:
        """Put a message in, and wait for room when there is none: back-pressure.

        First come, first served holds for one sender; among several, trio wakes them in any order. Cancellation while
        it waits leaves nothing in the mailbox.

        :param message: what to send
        :raises MailboxClosed: after `close`, also for those who wait
        """
        envelope = Envelope(message, self.clock())
        try:
            self._put(envelope)
        except MailboxFull:
            try:
                await self._queue.put(envelope)
            except anyio.ClosedResourceError:
                raise MailboxClosed(self.name) from None
            # Room may have come while this gave way, and the receiver may be waiting again.
            self.wake()

    async def ask(self, build: Callable[[Reply[T]], M], timeout_seconds: float) -> T:
        """Send a message that carries a reply, and wait for the answer; it always ends.

        A timeout or a cancellation leaves the envelope in the mailbox, with its caller gone, for the actor to skip.

        :param build: makes the message for a reply
        :param timeout_seconds: one deadline for all of it
        :raises MailboxFull: at once, when there is no room
        :raises MailboxClosed: after `close`, or when it comes while waiting
        :raises ActorDied: when the actor died before it replied
        :raises AskTimeout: after the deadline
        :raises BaseException: what the actor failed the reply with
        """
        return await self.answer(self.post(build), timeout_seconds)

    def post(self, build: Callable[[Reply[T]], M]) -> Reply[T]:
        """The first half of `ask`: put the message in. Whoever calls it must go on to `answer`.

        :param build: makes the message for a reply
        :raises MailboxFull: when there is no room
        :raises MailboxClosed: after `close`
        """
        reply: Reply[T] = Reply()
        self._put(Envelope(build(reply), self.clock(), reply=cast("Reply[object]", reply)))
        self._asks.add(reply)
        return reply

    async def answer(self, reply: Reply[T], timeout_seconds: float) -> T:
        """The second half of `ask`: wait for the answer.

        :param reply: what `post` returned
        :param timeout_seconds: how long
        :raises SupervisionError: as `ask` does
        """
        return await self._asks.answer(reply, timeout_seconds)

    def receive_nowait(self, limit: int = 1) -> list[Envelope[M]]:
        """Receive what waits.

        Envelopes that are delivered again come first. One that may have caused a death comes alone, so that a poisonous
        one harms no other.

        :param limit: at most so many envelopes
        :returns: nothing when nothing waits
        :raises RuntimeError: while envelopes are unacked
        :raises ValueError: for a limit below one
        """
        if self._unacked:
            raise RuntimeError(f"{self.name}: {len(self._unacked)} envelopes are not acked")
        if limit < 1:
            raise ValueError("limit starts at 1")
        if self._redelivery and self._redelivery[0].attempts:
            self._unacked.append(self._redelivery.popleft())
            return list(self._unacked)
        while len(self._unacked) < limit and self._redelivery and not self._redelivery[0].attempts:
            self._unacked.append(self._redelivery.popleft())
        if not self._redelivery:
            while len(self._unacked) < limit and (envelope := self._queue.take_nowait()) is not None:
                self._unacked.append(envelope)
        return list(self._unacked)

    async def receive(self, limit: int = 1) -> list[Envelope[M]]:
        """Receive what waits, and wait for it when there is nothing.

        Cancellation leaves nothing unacked and everything in the mailbox.

        :param limit: at most so many envelopes
        :raises MailboxClosed: when it is closed and nothing is left
        :raises RuntimeError: while envelopes are unacked
        """
        await checkpoint()
        while not (envelopes := self.receive_nowait(limit)):
            if self.closed:
                raise MailboxClosed(self.name)
            await self.arrival()
        return envelopes

    async def arrival(self) -> None:
        """Wait until something may have come: an envelope, `close`, or `wake`. Look first, or you wait too long."""
        if self._arrival is None or self._arrival.is_set():
            self._arrival = anyio.Event()
        await self._arrival.wait()

    def wake(self) -> None:
        """End the wait of `arrival`."""
        if self._arrival is not None:
            self._arrival.set()

    def ack(self, envelopes: Iterable[Envelope[M]]) -> None:
        """Let go of envelopes that are done with; those that are not unacked are ignored.

        :param envelopes: envelopes that were received
        """
        done = {id(envelope) for envelope in envelopes}
        self._unacked = [envelope for envelope in self._unacked if id(envelope) not in done]

    def redeliver(self, died: ActorDied, *, failure_cause: BaseException | None = None) -> None:
        """Called when an attempt of the actor ended: what it had unacked comes again, and no ask goes on waiting.

        Every ask that has no answer yet fails, also one whose envelope was acked: whoever held its reply is gone.

        :param died: what those who asked are told
        :param failure_cause: the error that ended the attempt, if an unacked envelope may have caused it. None after a
            kill: an envelope must not be given up for kills, however many there are
        """
        for envelope in reversed(self._unacked):
            if failure_cause is not None:
                envelope = replace(envelope, attempts=envelope.attempts + 1, last_error=failure_cause)
            self._redelivery.appendleft(envelope)
        self._unacked = []
        actor, reason = died.actor, died.reason
        self._asks.fail_all(lambda: ActorDied(actor, reason))

    def close(self) -> None:
        """Take no more envelopes and fail the pending asks; what is in the mailbox can still be received."""
        if not self.closed:
            self._queue.close()
            self._asks.fail_all(lambda: MailboxClosed(self.name))
            self.wake()

    def _put(self, envelope: Envelope[M]) -> None:
        try:
            self._queue.put_nowait(envelope)
        except anyio.WouldBlock:
            raise MailboxFull(self.name, self.capacity) from None
        except anyio.ClosedResourceError:
            raise MailboxClosed(self.name) from None
        self.wake()
