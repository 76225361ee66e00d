"""What an attempt of an actor is given, and two loops to build actors from."""

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
    """One attempt's view of its supervisor.

    :param name: of the child; the key, for a child of a dynamic supervisor
    :param incarnation: 1 for the first attempt
    :param mailbox: its envelopes, if it has any
    :param on_ready: called once, when it reports ready
    """

    __slots__ = (
        "_busy_since",
        "_clock",
        "_mailbox",
        "_on_ready",
        "_stop",
        "acked",
        "incarnation",
        "name",
        "ready_at",
    )

    def __init__(
        self,
        name: str,
        incarnation: int = 1,
        mailbox: Mailbox[M] | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.ready_at: float | None = None
        self.acked = 0  # envelopes this attempt is done with
        self._mailbox = mailbox
        self._clock = mailbox.clock if mailbox else LoopClock()
        self._on_ready = on_ready
        self._stop = anyio.Event()
        self._busy_since: float | None = None

    @property
    def mailbox(self) -> Mailbox[M]:
        """Its mailbox.

        :raises RuntimeError: when its spec has none
        """
        if self._mailbox is None:
            raise RuntimeError(f"{self.name} has no mailbox")
        return self._mailbox

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    async def wait_stopping(self) -> None:
        """Wait until it is asked to stop; cancellation leaves nothing behind."""
        await self._stop.wait()

    def request_stop(self) -> None:
        """Ask it to stop, and wake a waiting `receive`. The supervisor's side."""
        self._stop.set()
        if self._mailbox is not None:
            self._mailbox.wake()

    def ready(self) -> None:
        """Report that it has started: the next child may. Reporting it again changes nothing."""
        if self.ready_at is None:
            self.ready_at = self._clock()
            if self._on_ready is not None:
                self._on_ready()

    def heartbeat(self) -> None:
        """I am busy and making progress: the watchdog's clock starts anew."""
        self._busy_since = self._clock()

    def mark_idle(self) -> None:
        """I hold no work: the watchdog is off."""
        self._busy_since = None

    @property
    def busy_since(self) -> float | None:
        """The last heartbeat, in seconds of anyio's clock; None while idle."""
        return self._busy_since

    async def receive(self, limit: int = 1) -> list[Envelope[M]]:
        """Take envelopes, and wait for them. Sends a heartbeat when there are some, is idle while it waits.

        Cancellation leaves nothing unacked and everything in the mailbox.

        :param limit: at most so many
        :returns: nothing when no envelope will come: a stop was asked for, or the mailbox closed, and it is empty
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
        """Take the envelopes that wait. Sends a heartbeat when there are some, is idle when there are none.

        :param limit: at most so many
        :raises RuntimeError: while envelopes are unacked
        """
        envelopes = self.mailbox.receive_nowait(limit)
        if envelopes:
            self.heartbeat()
        else:
            self.mark_idle()
        return envelopes

    def ack(self, envelopes: Iterable[Envelope[M]]) -> None:
        """Let go of envelopes that are done with; those that are not unacked are ignored.

        :param envelopes: envelopes that were received
        """
        before = len(self.mailbox.unacked)
        self.mailbox.ack(envelopes)
        self.acked += before - len(self.mailbox.unacked)


async def serve(
    context: ActorContext[M],
    handle: Callable[[list[Envelope[M]]], Awaitable[None]],
    *,
    limit: int = 1,
    on_max_deliveries: Callable[[Envelope[M]], Awaitable[None]],
) -> None:
    """Report ready and handle envelopes until a stop was asked for and the mailbox is empty.

    Asks whose callers are gone are handled too; a handler that wants to skip them checks `Envelope.caller_gone`. A
    handler may ack envelopes while it runs; the other envelopes are acked when the handler returns. Cancellation leaves
    the envelopes unacked, and the supervisor delivers them again.

    :param context: of the attempt
    :param handle: gets at least one envelope, and none that was delivered too often
    :param limit: how many envelopes it gets at most
    :param on_max_deliveries: gets an envelope whose deliveries ended `max_deliveries` times in the actor's death
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
) -> None:
    """Report ready and handle envelopes until the mailbox is empty: the loop for children of a dynamic supervisor.

    Between the last look into the mailbox and the return there is no pause in which an envelope could come.

    :param context: of the attempt
    :param handle: as for `serve`
    :param limit: as for `serve`
    :param on_max_deliveries: as for `serve`
    """
    context.ready()
    while envelopes := context.receive_nowait(limit):
        await _handle(context, envelopes, handle, on_max_deliveries)
        # A handler that never pauses must not keep everybody else from running.
        await checkpoint()


async def _handle(
    context: ActorContext[M],
    envelopes: list[Envelope[M]],
    handle: Callable[[list[Envelope[M]]], Awaitable[None]],
    on_max_deliveries: Callable[[Envelope[M]], Awaitable[None]],
) -> None:
    # Envelopes that come again come alone, so a list is either one spent envelope or has none.
    if envelopes[0].attempts >= context.mailbox.max_deliveries:
        await on_max_deliveries(envelopes[0])
    else:
        await handle(envelopes)
    context.ack(envelopes)
