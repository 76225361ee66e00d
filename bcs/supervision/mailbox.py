"""A bounded mailbox that outlives its actor.

A sender never passes an envelope directly to a waiting receiver. A receiver waits for the event that an envelope has
arrived, and then takes the envelope without an await. So no kind of cancellation can lose an envelope.
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

    from bcs.supervision.load import Load

M = TypeVar("M")
T = TypeVar("T")


class Mailbox(Generic[M]):
    """Envelopes for one actor: queued, unacked, or waiting for redelivery.

    Only queued envelopes count against the capacity.

    :param name: for errors and snapshots
    :param capacity: the maximum number of queued envelopes, or `math.inf`
    :param max_deliveries: `serve` gives an envelope up after this number of deliveries that ended in a crash or a hang
    :param clock: the clock of the event loop; short-lived mailboxes share one
    :param load: counts the envelopes of several mailboxes
    :raises ValueError: for a capacity or a number of deliveries below one
    """

    __slots__ = (
        "__weakref__",
        "_arrival",
        "_asks",
        "_load",
        "_queue",
        "_redelivery",
        "_sending",
        "_unacked",
        "capacity",
        "clock",
        "max_deliveries",
        "name",
    )

    def __init__(
        self,
        name: str,
        capacity: float,
        max_deliveries: int = 3,
        *,
        clock: LoopClock | None = None,
        load: Load | None = None,
    ) -> None:
        if capacity < 1 or max_deliveries < 1:
            raise ValueError(f"{name}: capacity and max_deliveries must be at least 1")
        self.name = name
        self.capacity = capacity if math.isinf(capacity) else int(capacity)
        self.max_deliveries = max_deliveries
        self.clock = clock or LoopClock()
        self._load = load
        self._queue: Queue[Envelope[M]] = Queue(self.capacity)
        self._redelivery: deque[Envelope[M]] = deque()
        self._unacked: list[Envelope[M]] = []
        self._sending = 0  # calls of `send` that wait for room, or have not continued after that
        self._asks: PendingAsks | None = None  # made for the first ask
        self._arrival: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<Mailbox {self.name} {self.depth}/{self.capacity}{' closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """True if the mailbox accepts no more envelopes."""
        return self._queue.closed

    @property
    def depth(self) -> int:
        """The number of envelopes that are queued, unacked, or waiting for redelivery."""
        return len(self._queue) + len(self._redelivery) + len(self._unacked)

    @property
    def unacked(self) -> tuple[Envelope[M], ...]:
        """The envelopes that the actor received and has not acked yet."""
        return tuple(self._unacked)

    @property
    def pending_asks(self) -> int:
        """The number of asks that wait for an answer."""
        return 0 if self._asks is None else len(self._asks)

    @property
    def needs_redelivery(self) -> bool:
        """True if `redeliver` has something to do when an attempt of the actor ends."""
        return bool(self._unacked) or self.pending_asks > 0

    def oldest_age_seconds(self, now: float) -> float:
        """The age of the oldest envelope, 0.0 when there is none.

        :param now: the current time, in seconds of anyio's clock
        """
        head = self._queue.peek()
        times = [envelope.enqueued_at for envelope in (*self._unacked, *self._redelivery, *([head] if head else []))]
        return max(0.0, now - min(times)) if times else 0.0

    def send_nowait(self, message: M) -> None:
        """Put a message into the mailbox.

        :param message: the message
        :raises MailboxFull: when the mailbox is full
        :raises MailboxClosed: after `close`
        """
        self._put(Envelope(message, self.clock()))

    async def send(self, message: M) -> None:
        """Put a message into the mailbox, and wait for room if there is none (back-pressure).

        The messages of one sender keep their order; several waiting senders may be served in any order (on trio). A
        call that is cancelled while it waits leaves nothing in the mailbox.

        :param message: the message
        :raises MailboxClosed: after `close`, also in calls that already wait
        """
        envelope = Envelope(message, self.clock())
        try:
            self._put(envelope)
        except MailboxFull:
            self._sending += 1
            try:
                await self._queue.put(envelope)
            except anyio.ClosedResourceError:
                raise MailboxClosed(self.name) from None
            finally:
                self._sending -= 1
            if self._load is not None and envelope in self._queue:
                self._load.add(envelope)
            # The receiver may have emptied the mailbox while this task yielded, and may wait again.
            self.wake()

    async def ask(self, build: Callable[[Reply[T]], M], timeout_seconds: float) -> T:
        """Send a message that carries a reply, and wait for the answer. The call always ends.

        After a timeout or a cancellation the envelope stays in the mailbox; the actor may skip it, see `caller_gone`.

        :param build: makes the message from a reply
        :param timeout_seconds: one deadline for the whole call
        :raises MailboxFull: at once, when the mailbox is full
        :raises MailboxClosed: after `close`, also in calls that already wait
        :raises ActorDied: when the actor died before it replied
        :raises AskTimeout: after the deadline
        :raises BaseException: the error that the actor set
        """
        return await self.answer(self.post(build), timeout_seconds)

    def post(self, build: Callable[[Reply[T]], M]) -> Reply[T]:
        """The first half of `ask`: put the message into the mailbox. The caller must call `answer` next.

        :param build: makes the message from a reply
        :raises MailboxFull: when the mailbox is full
        :raises MailboxClosed: after `close`
        """
        reply: Reply[T] = Reply()
        self._put(Envelope(build(reply), self.clock(), reply=cast("Reply[object]", reply)))
        if self._asks is None:
            self._asks = PendingAsks(self.name)
        self._asks.add(reply)
        return reply

    async def answer(self, reply: Reply[T], timeout_seconds: float) -> T:
        """The second half of `ask`: wait for the answer.

        :param reply: the reply that `post` returned
        :param timeout_seconds: the maximum time to wait
        :raises SupervisionError: for the same reasons as `ask`
        """
        assert self._asks is not None  # noqa: S101 (`post` made it)
        return await self._asks.answer(reply, timeout_seconds)

    def receive_nowait(self, limit: int = 1) -> list[Envelope[M]]:
        """Take the waiting envelopes; they are unacked until `ack`.

        Envelopes for redelivery come first. An envelope that may have caused a failure comes alone, so that a poisonous
        message cannot harm other messages.

        :param limit: the maximum number of envelopes
        :returns: an empty list when no envelope waits
        :raises RuntimeError: while envelopes are unacked
        :raises ValueError: for a limit below one
        """
        if self._unacked:
            raise RuntimeError(f"{self.name}: {len(self._unacked)} envelopes are not acked")
        if limit < 1:
            raise ValueError("limit must be at least 1")
        unacked, redelivery = self._unacked, self._redelivery
        if redelivery and redelivery[0].attempts:
            unacked.append(redelivery.popleft())
            return list(unacked)
        while len(unacked) < limit and redelivery and not redelivery[0].attempts:
            unacked.append(redelivery.popleft())
        if not redelivery:
            queue = self._queue
            while len(unacked) < limit and (envelope := queue.take_nowait()) is not None:
                unacked.append(envelope)
            if self._sending and self._load is not None:
                # This call took what waiting senders had put in, perhaps before they could count it.
                for envelope in unacked:
                    self._load.add(envelope)
        return list(unacked)

    async def receive(self, limit: int = 1) -> list[Envelope[M]]:
        """Take the waiting envelopes, and wait for the first one if there is none.

        A cancelled call takes no envelope.

        :param limit: the maximum number of envelopes
        :raises MailboxClosed: when the mailbox is closed and empty
        :raises RuntimeError: while envelopes are unacked
        """
        await checkpoint()
        while not (envelopes := self.receive_nowait(limit)):
            if self.closed:
                raise MailboxClosed(self.name)
            await self.arrival()
        return envelopes

    async def arrival(self) -> None:
        """Wait for an envelope, for `close`, or for `wake`. Check the mailbox first: earlier events do not count."""
        if self._arrival is None or self._arrival.is_set():
            self._arrival = anyio.Event()
        await self._arrival.wait()

    def wake(self) -> None:
        """End all waits of `arrival`."""
        if self._arrival is not None:
            self._arrival.set()

    def ack(self, envelopes: Iterable[Envelope[M]]) -> int:
        """Acknowledge envelopes: the mailbox drops them. Envelopes that are not unacked are ignored.

        :param envelopes: envelopes that were received
        :returns: the number of envelopes that were dropped
        """
        before = self._unacked
        done = {id(envelope) for envelope in envelopes}
        self._unacked = [envelope for envelope in before if id(envelope) not in done]
        if self._load is not None:
            for envelope in before:
                if id(envelope) in done:
                    self._load.remove(envelope)
        return len(before) - len(self._unacked)

    def redeliver(self, died: ActorDied, *, failure_cause: BaseException | None = None) -> None:
        """Queue the unacked envelopes for redelivery, and fail all asks; called when an attempt of the actor ended.

        Every ask without an answer fails, also if its envelope was acked, because the attempt with the reply is gone.

        :param died: the error for the callers
        :param failure_cause: the error that ended the attempt, if an unacked envelope may have caused it. None after a
            kill: an envelope must not be given up for kills, however many there are
        """
        for envelope in reversed(self._unacked):
            if failure_cause is not None:
                envelope = self._with_failure(envelope, failure_cause)
            self._redelivery.appendleft(envelope)
        self._unacked = []
        actor, reason = died.actor, died.reason
        if self._asks is not None:
            self._asks.fail_all(lambda: ActorDied(actor, reason))

    def close(self) -> None:
        """Accept no more envelopes, and fail the pending asks. The actor can still receive the remaining envelopes."""
        if not self.closed:
            self._queue.close()
            if self._asks is not None:
                self._asks.fail_all(lambda: MailboxClosed(self.name))
            self.wake()

    def _put(self, envelope: Envelope[M]) -> None:
        try:
            self._queue.put_nowait(envelope)
        except anyio.WouldBlock:
            raise MailboxFull(self.name, self.capacity) from None
        except anyio.ClosedResourceError:
            raise MailboxClosed(self.name) from None
        if self._load is not None:
            self._load.add(envelope)
        self.wake()

    def _with_failure(self, envelope: Envelope[M], cause: BaseException) -> Envelope[M]:
        failed = replace(envelope, attempts=envelope.attempts + 1, last_error=cause)
        if self._load is not None:
            self._load.remove(envelope)
            self._load.add(failed)
        return failed
