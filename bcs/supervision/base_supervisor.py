"""The base class of both kinds of supervisor: the main loop, and the place in the tree.

One synchronous function, `_tick`, makes all decisions: it checks the attempts, does what is due, and returns the time
of the next check. So a cancellation cannot interrupt a decision, and no decision must be undone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from bcs.supervision.errors import RestartIntensityExceeded, UnexpectedCancellation, describe
from bcs.supervision.intensity import RestartIntensity, RestartWindow
from bcs.supervision.observer import NullObserver, Observer, notify
from bcs.supervision.snapshot import Snapshot, State
from bcs.supervision.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from bcs.supervision.actor import ActorContext
    from bcs.supervision.attempt import Attempt, Exit
    from bcs.supervision.backoff import Backoff


class BaseSupervisor(ABC):
    """A supervisor; the subclasses decide which children there are and when they start.

    :param name: for errors; in a path stands the name of the ChildSpec that starts the supervisor
    :param intensity: the number of restarts after which the supervisor gives up
    :param backoff: the wait before a restart
    :param random: returns a number from 0.0 to 1.0, for the jitter
    :param observer: receives the events; by default the observer of the parent
    :param kill_grace_seconds: the time that a cancelled attempt has to end
    """

    _most_idle_tasks = 0

    def __init__(
        self,
        name: str,
        *,
        intensity: RestartIntensity,
        backoff: Backoff,
        random: Callable[[], float],
        observer: Observer | None,
        kill_grace_seconds: float,
    ) -> None:
        self.name = name
        self._path = ""
        self._intensity = intensity
        self._window = RestartWindow(intensity)
        self._backoff = backoff
        self._random = random
        self._inherits_observer = observer is None
        self._observer: Observer = NullObserver() if observer is None else observer
        self._kill_grace_seconds = kill_grace_seconds
        self._incarnation = 0
        self._last_error: str | None = None
        self._context: ActorContext[Any] | None = None
        self._tasks: TaskGroup | None = None
        self._workers: Workers | None = None
        self._changed: anyio.Event | None = None
        self._finished = False
        self._failure: RestartIntensityExceeded | None = None
        self._fatal: BaseException | None = None

    async def run(self, context: ActorContext[Any]) -> None:
        """Run the children until a stop is requested. Pass this method as the `start` of a ChildSpec.

        A supervisor may run again after it ended. Cancellation cancels all children and waits for their end; the
        mailboxes keep their envelopes.

        :param context: the context of this supervisor's own attempt
        :raises RestartIntensityExceeded: when the supervisor gave up, after it stopped its children
        :raises UnexpectedCancellation: when other code natively cancelled a task of the supervisor
        :raises RuntimeError: while the supervisor already runs
        """
        if self._context is not None:
            raise RuntimeError(f"{self.name} is already running")
        self._context = context
        self._window = RestartWindow(self._intensity)
        self._finished, self._failure, self._fatal = False, None, None
        self._incarnation += 1
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._relay_stop, context)
                await self._loop(tasks)
                # Only unresponsive attempts are left; they may still end.
                tasks.cancel_scope.cancel()
        finally:
            self._context = None
            if self._fatal is not None:
                # SystemExit and KeyboardInterrupt go from task to task in this way. If the actor's task raised them,
                # asyncio would leave the event loop at once, without any cleanup.
                raise self._fatal
        if self._failure is not None:
            raise self._failure
        if not self._finished:
            # The task group ended because a task of the supervisor was natively cancelled, and swallowed that error.
            raise UnexpectedCancellation(self._path or self.name)

    async def _loop(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._workers = Workers(tasks, copy_context(), most_idle=self._most_idle_tasks)
        try:
            self._begin()
            while True:
                self._changed = anyio.Event()
                due = self._tick(anyio.current_time())
                if self._finished:
                    return
                with anyio.CancelScope(deadline=due):
                    await self._changed.wait()
                # If a change came together with a cancellation, the attempts are cancelled too: start nothing.
                await checkpoint_if_cancelled()
        finally:
            # From here on no attempt can start: the task group is about to refuse new tasks.
            self._tasks = self._workers = self._changed = None

    @abstractmethod
    def _begin(self) -> None:
        """Prepare a run."""

    @abstractmethod
    def _tick(self, now: float) -> float:
        """Do what is due, set `_finished` at the end of the run, and return the time of the next check."""

    @abstractmethod
    def kill(self, path: str, reason: str = "killed") -> bool:
        """Cancel an attempt; its supervisor handles that like a crash.

        :param path: the path of the actor, relative to this supervisor
        :param reason: the reason to report to the observer
        :returns: False when the actor does not run at the moment
        :raises UnknownChild: when no child has that path
        """

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """A snapshot of this supervisor and of everything below it."""

    @abstractmethod
    def close(self) -> None:
        """Close all mailboxes here and below, because no run will follow."""

    @property
    def healthy(self) -> bool:
        """False when an attempt here or below is unresponsive: then only a new process helps."""
        return self.snapshot().healthy

    def attach(self, path: str, observer: Observer) -> None:
        """Set the supervisor's place in a tree. Only the parent calls this method.

        :param path: the path of this supervisor
        :param observer: the observer of the parent
        """
        self._path = path
        if self._inherits_observer:
            self._observer = observer

    @abstractmethod
    def attempt_ready(self) -> None:
        """See `AttemptListener`."""

    @abstractmethod
    def attempt_waits(self, name: str) -> None:
        """See `AttemptListener`."""

    def attempt_changed(self) -> None:
        """See `AttemptListener`."""
        if self._changed is not None:
            self._changed.set()

    def attempt_unresponsive(self, attempt: Attempt) -> None:
        """See `AttemptListener`."""
        notify(self._observer.actor_unresponsive, attempt.path)

    def attempt_ended(self, attempt: Attempt, ended: Exit) -> None:
        """See `AttemptListener`."""
        self._note_end(attempt, ended)
        notify(self._observer.actor_ended, attempt.path, attempt.context.incarnation, ended.reason, ended.error)
        if ended.fatal and self._fatal is None:
            self._fatal = ended.error
            self.attempt_changed()
        elif not ended.outside:
            self._follow_up(attempt, ended)

    @abstractmethod
    def _note_end(self, attempt: Attempt, ended: Exit) -> None:
        """Store the result of an attempt that ended."""

    @abstractmethod
    def _follow_up(self, attempt: Attempt, ended: Exit) -> None:
        """Decide what follows an attempt that ended while this supervisor runs."""

    @property
    def _ending(self) -> bool:
        """True if this run must end: a stop was requested, or the supervisor gave up."""
        return self._context is None or self._context.stopping or self._failure is not None

    def _path_of(self, name: str) -> str:
        return f"{self._path}/{name}" if self._path else name

    def _set_off(self, attempt: Attempt) -> None:
        """Start the task of an attempt, with the context variables of this supervisor and not those of a sender."""
        notify(self._observer.actor_started, attempt.path, attempt.context.incarnation)
        if self._workers is not None:
            self._workers.run(attempt)

    def _may_restart(self, last_error: str) -> bool:
        """Count a restart; give up and return False if there were too many."""
        if self._window.allow(anyio.current_time()):
            return True
        limit = self._intensity
        self._failure = RestartIntensityExceeded(self.name, limit.max_restarts, limit.period_seconds, last_error)
        self._last_error = describe(self._failure)
        notify(self._observer.intensity_exceeded, self._path)
        return False

    def _state(self) -> State:
        if self._context is None:
            return State.IDLE
        if self._context.stopping or self._failure is not None or self._fatal is not None:
            return State.STOPPING
        return State.STARTING if self._context.ready_at is None else State.RUNNING

    async def _relay_stop(self, context: ActorContext[Any]) -> None:
        await context.wait_stopping()
        self.attempt_changed()
