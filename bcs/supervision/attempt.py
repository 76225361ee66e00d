"""One attempt of an actor: run it, enforce its time limits, and find out how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

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
    """The time limits of an attempt.

    :param start_timeout_seconds: from the start until the attempt reports ready
    :param hang_seconds: from one heartbeat to the next, while the attempt is busy; None for no watchdog
    :param kill_grace_seconds: from the cancellation to the end of the attempt
    """

    start_timeout_seconds: float
    hang_seconds: float | None
    kill_grace_seconds: float


@dataclass(frozen=True, slots=True)
class Exit:
    """How an attempt ended.

    :param reason: see `Observer.actor_ended`
    :param error: the error that the attempt raised, or an UnexpectedCancellation
    :param abnormal: True if the attempt crashed or was cancelled
    :param fatal: True if no supervisor may handle the error, like SystemExit
    :param outside: True if the supervisor is cancelled too
    """

    reason: str
    error: BaseException | None = None
    abnormal: bool = False
    fatal: bool = False
    outside: bool = False

    @property
    def description(self) -> str:
        """One line of text: the error, or the reason when there is no error."""
        return self.reason if self.error is None else describe(self.error)


class AttemptListener(Protocol):
    """Receives the reports of an attempt; all calls are synchronous."""

    def attempt_ready(self) -> None:
        """An attempt has reported ready."""

    def attempt_waits(self, name: str) -> None:
        """The attempt of the child with this name waits, and lets another child run in its place."""

    def attempt_changed(self) -> None:
        """An attempt was cancelled or became unresponsive: check the attempts again."""

    def attempt_unresponsive(self, attempt: Attempt) -> None:
        """The attempt ignores its cancellation."""

    def attempt_ended(self, attempt: Attempt, ended: Exit) -> None:
        """The attempt ended, and its unacked envelopes are back in the mailbox."""


class Attempt:
    """One attempt of an actor.

    :param path: the path of the actor
    :param context: the context that the actor receives
    :param start: the actor's function
    :param mailbox: the actor's mailbox, if the actor has one
    :param limits: the time limits
    :param listener: receives the attempt's reports
    """

    __slots__ = (
        "_cancel_reason",
        "_cancelled_at",
        "_clock",
        "_hung",
        "_limits",
        "_listener",
        "_mailbox",
        "_scope",
        "_start",
        "_stop_by",
        "context",
        "path",
        "started_at",
        "unresponsive",
    )

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
        self._clock = context.clock
        self.started_at = self._clock()
        self._start = start
        self._mailbox = mailbox
        self._limits = limits
        self._listener = listener
        self._scope: anyio.CancelScope | None = None  # None until a task runs the attempt
        self._cancel_reason: str | None = None
        self._hung = False
        self._cancelled_at = math.inf
        self._stop_by = math.inf

    @property
    def ready(self) -> bool:
        """True if the attempt has reported ready and its supervisor has not cancelled it."""
        return self.context.ready_at is not None and self._cancel_reason is None

    @property
    def cancelled(self) -> bool:
        """True if the supervisor cancelled the attempt."""
        return self._cancel_reason is not None

    @property
    def asked_to_stop(self) -> bool:
        """True if the supervisor asked the attempt to stop."""
        return self.context.stopping

    @property
    def state(self) -> State:
        """The state of the attempt."""
        if self.unresponsive:
            return State.UNRESPONSIVE
        if self._cancel_reason is not None or self.context.stopping:
            return State.STOPPING
        return State.STARTING if self.context.ready_at is None else State.RUNNING

    async def run_in(self, scope: anyio.CancelScope) -> None:
        """Run the actor's function to its end; `end` must follow. Cancellation ends the function.

        :param scope: the innermost scope of the calling task; `cancel` cancels this scope
        :raises BaseException: the error of the function
        """
        self._scope = scope
        if self._cancel_reason is not None:
            scope.cancel(self._cancel_reason)
        # An attempt that is cancelled before it began must not touch its envelopes.
        await checkpoint_if_cancelled()
        await self._start(self.context)

    def end(self, error: BaseException | None) -> None:
        """Report the end. The unacked envelopes are back in the mailbox before any other task runs.

        If the attempt was cancelled, call this method outside of the scope, or the end looks like one from outside.

        :param error: the error that `run_in` raised
        """
        self._scope = None
        ended = self._explain(error)
        if self._mailbox is not None and self._mailbox.needs_redelivery:
            died = ActorDied(self.path, ended.description)
            # Only a crash or a hang can be caused by an envelope. Every other end comes from outside.
            caused_failure = ended.abnormal and not ended.outside and (self._cancel_reason is None or self._hung)
            self._mailbox.redeliver(died, failure_cause=ended.error or died if caused_failure else None)
        self._listener.attempt_ended(self, ended)

    def cancel(self, reason: str) -> bool:
        """Cancel the attempt's own cancel scope.

        :param reason: the reason to report to the observer
        :returns: False when the attempt was cancelled before
        """
        if self._cancel_reason is not None:
            return False
        self._cancel_reason = reason
        self._cancelled_at = self._clock()
        if self._scope is not None:
            self._scope.cancel(reason)
        self._listener.attempt_changed()
        return True

    def request_stop(self, by: float) -> None:
        """Ask the attempt to stop. A second call has no effect.

        :param by: the time at which a running attempt is cancelled, in seconds of anyio's clock
        """
        if not self.context.stopping:
            self._stop_by = by
            self.context.request_stop()

    def enforce(self, now: float) -> float:
        """Cancel the attempt if it exceeds a limit, and report it as unresponsive if it ignores the cancellation.

        :param now: the current time, in seconds of anyio's clock
        :returns: the time of the next check
        """
        if self._cancel_reason is None:
            due, reason = self._deadline(now)
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

    def _deadline(self, now: float) -> tuple[float, str]:
        """The first deadline, and what a cancellation at that time is called. There may be thousands of attempts."""
        due, reason = self._stop_by, "shutdown timeout"
        hang_seconds = self._limits.hang_seconds
        if hang_seconds is not None:
            # An idle attempt can become busy now at the earliest, so it cannot hang before now + hang_seconds.
            busy_since = self.context.busy_since
            hangs_at = (now if busy_since is None else busy_since) + hang_seconds
            if hangs_at <= due:
                due, reason = hangs_at, "hung"
        if self.context.ready_at is None and (late_at := self.started_at + self._limits.start_timeout_seconds) < due:
            due, reason = late_at, "start timeout"
        return due, reason

    def _explain(self, error: BaseException | None) -> Exit:
        outside = anyio.current_effective_deadline() == -math.inf
        if error is None and self._cancel_reason is None and not outside:
            return _STOPPED if self.context.stopping else _RETURNED
        cancellation, rest = _split(error, anyio.get_cancelled_exc_class())
        if _split(rest, Exception)[1] is not None:
            return Exit("crashed", rest, abnormal=True, fatal=True, outside=outside)
        if self._cancel_reason is not None:
            return Exit(self._cancel_reason, rest, abnormal=True, outside=outside)
        if outside:
            return Exit("cancelled", rest, abnormal=True, outside=True)
        if rest is not None:
            return Exit("crashed", rest, abnormal=True)
        # asyncio only. A task group would swallow this error, so the supervisor would not see that the actor ended.
        unexpected = UnexpectedCancellation(self.path)
        unexpected.__cause__ = cancellation
        return Exit("crashed", unexpected, abnormal=True)


_STOPPED: Final = Exit("stopped")
_RETURNED: Final = Exit("returned")


def _split(error: BaseException | None, kind: type[BaseException]) -> tuple[BaseException | None, BaseException | None]:
    """Split an error, or an error group, into the part of a kind and the other part."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(kind)
    return (error, None) if isinstance(error, kind) else (None, error)
