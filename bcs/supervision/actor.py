"""The context of an actor's attempt, and two loops to build actors from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from bcs.supervision.clock import LoopClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from bcs.supervision.envelope import Envelope
    from bcs.supervision.mailbox import Mailbox

M = TypeVar("M")


class ActorContext(Generic[M]):
    """The interface between one attempt of an actor and its supervisor.

    :param name: the name of the child; the key, for a child of a dynamic supervisor
    :param incarnation: the number of the attempt; the first one has 1
    :param mailbox: the child's mailbox, if the child has one
    :param on_ready: called once, when the attempt reports that it is ready
    :param on_waiting: called once, with the name, when the attempt reports for the first time that it waits
    """

    __slots__ = (
        "_busy_since",
        "_mailbox",
        "_on_ready",
        "_on_waiting",
        "_stop",
        "_stopping",
        "acked",
        "clock",
        "incarnation",
        "name",
        "ready_at",
        "waited",
    )

    def __init__(
        self,
        name: str,
        incarnation: int = 1,
        mailbox: Mailbox[M] | None = None,
        on_ready: Callable[[], None] | None = None,
        on_waiting: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.ready_at: float | None = None
        self.acked = 0  # number of envelopes that this attempt has acked
        self._mailbox = mailbox
        self.clock = mailbox.clock if mailbox else LoopClock()
        self._on_ready = on_ready
        self._on_waiting = on_waiting
        self.waited = False
        self._stopping = False
        self._stop: anyio.Event | None = None  # made for the first task that waits
        self._busy_since: float | None = None

    @property
    def mailbox(self) -> Mailbox[M]:
        """The mailbox of the child.

        :raises RuntimeError: when the child's spec has no mailbox
        """
        if self._mailbox is None:
            raise RuntimeError(f"{self.name} has no mailbox")
        return self._mailbox

    @property
    def stopping(self) -> bool:
        """True after the supervisor asked the attempt to stop."""
        return self._stopping

    async def wait_stopping(self) -> None:
        """Wait until the supervisor asks the attempt to stop."""
        if self._stop is None:
            self._stop = anyio.Event()
            if self._stopping:
                self._stop.set()
        await self._stop.wait()

    def request_stop(self) -> None:
        """Ask the attempt to stop, and wake a waiting `receive`. Only the supervisor calls this method."""
        self._stopping = True
        if self._stop is not None:
            self._stop.set()
        if self._mailbox is not None:
            self._mailbox.wake()

    def ready(self) -> None:
        """Report that the attempt is ready, so that the next child may start. A second call has no effect."""
        if self.ready_at is None:
            self.ready_at = self.clock()
            if self._on_ready is not None:
                self._on_ready()

    def give_turn(self) -> None:
        """Report that the attempt waits for something that may take long, like an outage.

        A dynamic supervisor with `max_running` runs another child in its place; this attempt continues when it can.
        """
        if not self.waited:
            self.waited = True
            if self._on_waiting is not None:
                self._on_waiting(self.name)

    def heartbeat(self) -> None:
        """Report that the attempt is busy and makes progress. The watchdog's clock starts again."""
        self._busy_since = self.clock()

    def mark_idle(self) -> None:
        """Report that the attempt has no work. The watchdog is off until the next heartbeat."""
        self._busy_since = None

    @property
    def busy_since(self) -> float | None:
        """The time of the last heartbeat, in seconds of anyio's clock; None while the attempt is idle."""
        return self._busy_since

    async def receive(self, limit: int = 1) -> list[Envelope[M]]:
        """Take envelopes from the mailbox, and wait for the first one if the mailbox is empty.

        The context sends a heartbeat when it returns envelopes, and is idle while it waits. A cancelled call takes no
        envelope.

        :param limit: the maximum number of envelopes
        :returns: an empty list when no envelope will come: the mailbox is empty, and is closed or the attempt must stop
        :raises RuntimeError: while envelopes are unacked
        """
        mailbox = self.mailbox
        await checkpoint()
        while not (envelopes := self.receive_nowait(limit)):
            if self.stopping or mailbox.closed:
                break
            await mailbox.arrival()
        return envelopes

    def receive_nowait(self, limit: int = 1) -> list[Envelope[M]]:
        """Take envelopes from the mailbox without waiting.

        The context sends a heartbeat when it returns envelopes, and is idle when it returns none.

        :param limit: the maximum number of envelopes
        :raises RuntimeError: while envelopes are unacked
        """
        envelopes = self.mailbox.receive_nowait(limit)
        if envelopes:
            self.heartbeat()
        else:
            self.mark_idle()
        return envelopes

    def ack(self, envelopes: Iterable[Envelope[M]]) -> None:
        """Acknowledge envelopes: the mailbox drops them. Envelopes that are not unacked are ignored.

        :param envelopes: envelopes that were received
        """
        self.acked += self.mailbox.ack(envelopes)


async def serve(
    context: ActorContext[M],
    handle: Callable[[list[Envelope[M]]], Awaitable[None]],
    *,
    limit: int = 1,
    on_max_deliveries: Callable[[Envelope[M]], Awaitable[None]],
) -> None:
    """Report ready, and handle envelopes until a stop is requested and the mailbox is empty.

    The handler also receives asks whose callers are gone; to skip them, it checks `Envelope.caller_gone`. The handler
    may ack envelopes while it runs; `serve` acks the other envelopes when the handler returns. Cancellation leaves the
    envelopes unacked, and the mailbox delivers them to the next attempt.

    :param context: the context of the attempt
    :param handle: receives one envelope or more; no envelope in the list has reached `max_deliveries`
    :param limit: the maximum number of envelopes in one call of `handle`
    :param on_max_deliveries: receives an envelope after `max_deliveries` of its deliveries ended in a crash or a hang
    """
    context.ready()
    while envelopes := await context.receive(limit):
        await _handle(context, envelopes, handle, on_max_deliveries)


async def serve_until_empty(
    context: ActorContext[M],
    handle: Callable[[list[Envelope[M]]], Awaitable[None]],
    *,
    limit: int = 1,
    on_max_deliveries: Callable[[Envelope[M]], Awaitable[None]],
    before_receive: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Report ready, and handle envelopes until the mailbox is empty; for children of a dynamic supervisor.

    There is no await between the last check of the mailbox and the return. So no envelope can arrive in between and be
    forgotten.

    :param context: the context of the attempt
    :param handle: as for `serve`
    :param limit: as for `serve`
    :param on_max_deliveries: as for `serve`
    :param before_receive: awaited before each receive. Envelopes that arrive during the wait are received, too
    """
    context.ready()
    mailbox = context.mailbox
    while mailbox.depth:
        if before_receive is not None:
            await before_receive()
        envelopes = context.receive_nowait(limit)
        await _handle(context, envelopes, handle, on_max_deliveries)
        if mailbox.depth:
            # A handler that never awaits must not block the other tasks.
            await checkpoint()
    context.mark_idle()


async def _handle(
    context: ActorContext[M],
    envelopes: list[Envelope[M]],
    handle: Callable[[list[Envelope[M]]], Awaitable[None]],
    on_max_deliveries: Callable[[Envelope[M]], Awaitable[None]],
) -> None:
    # The mailbox delivers an envelope with failed attempts alone. So it is enough to check the first one.
    if envelopes[0].attempts >= context.mailbox.max_deliveries:
        await on_max_deliveries(envelopes[0])
    else:
        await handle(envelopes)
    context.ack(envelopes)
