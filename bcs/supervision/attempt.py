"""One attempt of an actor: run it, notice when it overstays, and find out how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from bcs.supervision.errors import ActorDied, UnexpectedCancellation, describe
from bcs.supervision.snapshot import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bcs.supervision.actor import ActorContext
    from bcs.supervision.mailbox import Mailbox


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an attempt may take for what.

    :param start_timeout_seconds: until it reports ready
    :param hang_seconds: from one heartbeat to the next, while busy; None for no watchdog
    :param kill_grace_seconds: from its cancellation to its end
    """

    start_timeout_seconds: float
    hang_seconds: float | None
    kill_grace_seconds: float


@dataclass(frozen=True, slots=True)
class Exit:
    """How an attempt ended.

    :param reason: see `Observer.actor_ended`
    :param error: what it raised, or an UnexpectedCancellation
    :param abnormal: whether it crashed or was cancelled
    :param fatal: whether the error is none that a supervisor may handle, like SystemExit
    :param outside: whether everything around it is cancelled too
    """

    reason: str
    error: BaseException | None = None
    abnormal: bool = False
    fatal: bool = False
    outside: bool = False

    @property
    def description(self) -> str:
        """One line: the error, or the reason when there is none."""
        return self.reason if self.error is None else describe(self.error)


class AttemptListener(Protocol):
    """Whom an attempt reports to; all calls are synchronous."""

    def attempt_ready(self) -> None:
        """One has reported ready."""

    def attempt_changed(self) -> None:
        """Look at the attempts again: one was cancelled, or became unresponsive."""

    def attempt_unresponsive(self, attempt: Attempt) -> None:
        """It ignores its cancellation."""

    def attempt_ended(self, attempt: Attempt, ended: Exit) -> None:
        """It ended, and its mailbox is in order again."""


class Attempt:
    """One attempt.

    :param path: of the actor
    :param context: what it is given
    :param start: the actor
    :param mailbox: its envelopes, if it has any
    :param limits: how long it may take
    :param listener: whom it reports to
    """

    def __init__(
        self,
        path: str,
        context: ActorContext[Any],
        *,
        start: Callable[[ActorContext[Any]], Awaitable[None]],
        mailbox: Mailbox[Any] | None,
        limits: Limits,
        listener: AttemptListener,
    ) -> None:
        self.path = path
        self.context = context
        self.unresponsive = False
        self.started_at = anyio.current_time()
        self._start = start
        self._mailbox = mailbox
        self._limits = limits
        self._listener = listener
        self._scope = anyio.CancelScope()
        self._cancel_reason: str | None = None
        self._hung = False
        self._cancelled_at = math.inf
        self._stop_by = math.inf

    @property
    def ready(self) -> bool:
        """Whether it has reported ready and nothing has cancelled it."""
        return self.context.ready_at is not None and self._cancel_reason is None

    @property
    def cancelled(self) -> bool:
        """Whether its supervisor cancelled it."""
        return self._cancel_reason is not None

    @property
    def asked_to_stop(self) -> bool:
        """Whether its supervisor asked it to stop."""
        return self.context.stopping

    @property
    def state(self) -> State:
        """Where it stands."""
        if self.unresponsive:
            return State.UNRESPONSIVE
        if self._cancel_reason is not None or self.context.stopping:
            return State.STOPPING
        return State.STARTING if self.context.ready_at is None else State.RUNNING

    async def run(self) -> None:
        """Run it to its end, and report the end; to be run in a task of its own.

        Whatever ends it, its mailbox is put in order before anything else runs. A cancellation from outside goes on.
        """
        error: BaseException | None = None
        try:
            with self._scope:
                # One that is cancelled before it began must not touch its envelopes.
                await checkpoint_if_cancelled()
                await self._start(self.context)
        except GeneratorExit:
            raise
        except BaseException as caught:  # noqa: BLE001 - its supervisor decides what becomes of it
            error = caught
        # No pause from here to the report: an envelope that comes now must find either this attempt or the next one.
        ended = self._explain(error)
        if self._mailbox is not None:
            died = ActorDied(self.path, ended.description)
            # A crash, or a hang: whatever else ended it came from outside.
            caused_failure = ended.abnormal and not ended.outside and (self._cancel_reason is None or self._hung)
            self._mailbox.redeliver(died, failure_cause=ended.error or died if caused_failure else None)
        self._listener.attempt_ended(self, ended)
        # They hold this frame by their traceback: without this, it all waits for the garbage collector.
        del error, ended
        await checkpoint_if_cancelled()

    def cancel(self, reason: str) -> bool:
        """Cancel it, by its own scope.

        :param reason: for the observer
        :returns: False when that has been done before
        """
        if self._cancel_reason is not None:
            return False
        self._cancel_reason = reason
        self._cancelled_at = anyio.current_time()
        self._scope.cancel(reason)
        self._listener.attempt_changed()
        return True

    def request_stop(self, by: float) -> None:
        """Ask it to stop; doing it again changes nothing.

        :param by: when it is cancelled, if it runs still, in seconds of anyio's clock
        """
        if not self.context.stopping:
            self._stop_by = by
            self.context.request_stop()

    def enforce(self, now: float) -> float:
        """Cancel it if it overstays, and give it up as unresponsive if it ignores that.

        :param now: the present, in seconds of anyio's clock
        :returns: when to look again
        """
        if self._cancel_reason is None:
            due, reason = min(self._deadlines(now))
            if due > now:
                return due
            self._hung = reason == "hung"
            self.cancel(reason)
        due = self._cancelled_at + self._limits.kill_grace_seconds
        if due > now:
            return due
        if not self.unresponsive:
            self.unresponsive = True
            self._listener.attempt_unresponsive(self)
            self._listener.attempt_changed()
        return math.inf

    def _deadlines(self, now: float) -> list[tuple[float, str]]:
        deadlines = [(self._stop_by, "shutdown timeout")]
        if self.context.ready_at is None:
            deadlines.append((self.started_at + self._limits.start_timeout_seconds, "start timeout"))
        if self._limits.hang_seconds is not None:
            # An attempt that is idle now cannot have been busy for too long before so much time has passed.
            since = now if self.context.busy_since is None else self.context.busy_since
            deadlines.append((since + self._limits.hang_seconds, "hung"))
        return deadlines

    def _explain(self, error: BaseException | None) -> Exit:
        outside = anyio.current_effective_deadline() == -math.inf
        cancellation, rest = _split(error, anyio.get_cancelled_exc_class())
        if _split(rest, Exception)[1] is not None:
            return Exit("crashed", rest, abnormal=True, fatal=True, outside=outside)
        if self._cancel_reason is not None:
            return Exit(self._cancel_reason, rest, abnormal=True, outside=outside)
        if outside:
            return Exit("cancelled", rest, abnormal=True, outside=True)
        if rest is not None:
            return Exit("crashed", rest, abnormal=True)
        if cancellation is not None:
            # asyncio only. A task group would swallow it, and nobody would learn that the actor is gone.
            unexpected = UnexpectedCancellation(self.path)
            unexpected.__cause__ = cancellation
            return Exit("crashed", unexpected, abnormal=True)
        return Exit("stopped" if self.context.stopping else "returned")


def _split(error: BaseException | None, kind: type[BaseException]) -> tuple[BaseException | None, BaseException | None]:
    """An error's part of a kind, and the rest of it; reaches into groups."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(kind)
    return (error, None) if isinstance(error, kind) else (None, error)
